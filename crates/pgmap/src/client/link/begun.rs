//! Calls that are begun and finished later, so that the owner is at work while its client is.

use std::sync::Arc;
use std::time::Duration;

use pgmap_os::clock::Instant;
use pgmap_os::{Connection, thread};

use crate::client::Inner;
use crate::client::link::{Answer, Failed, Link, PendingCall, Remote};
use crate::deadline::{Deadline, millis};
use crate::error::Error;
use crate::wire::{self, Numbered, Reply, Request};

/// A request that has its number, and an answer to come.
#[derive(Debug)]
pub(super) struct SentCall {
    number: u64,
    connection: Arc<Connection>,
    pub(super) generation: u64,
    /// False if there was no room for it before its deadline.
    is_sent: bool,
}

/// A call that was begun. An owner in this process is asked when it is finished.
#[derive(Debug)]
pub(in crate::client) struct BegunCall<'l> {
    request: Request,
    /// `None` if it could not be sent at once: then it is sent when it is finished.
    sent: Option<SentAhead<'l>>,
}

/// A request whose answer somebody is to wait for. Dropped before, it is one that timed out.
#[derive(Debug)]
struct SentAhead<'l> {
    remote: &'l Remote,
    call: Option<SentCall>,
}

impl Drop for SentAhead<'_> {
    fn drop(&mut self) {
        let Some(call) = self.call.take() else { return };
        let mut state = self.remote.lock();
        let answered = state.calls.remove(&call.number);
        if state.generation != call.generation {
            return;
        }
        match answered {
            Some(PendingCall::Answered((reply, _))) => state.give_back(reply),
            _ if call.is_sent => state.owe(Request::Forget(call.number)),
            _ => {}
        }
        state.pay();
    }
}

impl BegunCall<'_> {
    /// What the request is called.
    pub(in crate::client) const fn name(&self) -> &'static str {
        self.request.name()
    }
}

impl Link {
    /// Sends a request, if there is room for it now. [`finish`](Self::finish) does what is left of
    /// the call.
    pub(in crate::client) fn begin(&self, request: Request) -> BegunCall<'_> {
        let sent = match self {
            Self::Embedded(_) => None,
            Self::Remote(remote) => {
                // What could not be sent is known as such when the call is finished.
                let call = remote.start(&request, Deadline::after(Duration::ZERO)).ok();
                // The kernel has the owner run on this processor, as if this thread would sleep.
                thread::yield_now();
                call.map(|call| SentAhead { remote, call: Some(call) })
            }
        };
        BegunCall { request, sent }
    }

    /// As [`call`](Self::call), of a call that was begun. `limit` counts from now on.
    pub(in crate::client) fn finish(
        &self,
        caller: &Inner,
        begun: BegunCall<'_>,
        limit: Duration,
    ) -> Result<Reply, Failed> {
        let BegunCall { request, sent } = begun;
        match self {
            Self::Embedded(shared) => Ok(shared.call(caller.id, request, limit)?),
            Self::Remote(remote) => {
                let sent = sent.and_then(|mut sent| sent.call.take_if(|call| call.is_sent));
                Ok(remote.call_resuming(caller, request, sent, limit)?.0)
            }
        }
    }
}

impl Remote {
    /// Sends a request, waiting for room until `deadline`.
    pub(super) fn start(&self, request: &Request, deadline: Deadline) -> Result<SentCall, Failed> {
        let mut state = self.lock();
        if let Some(gone) = state.gone() {
            return Err(gone.into());
        }
        state.pay();
        let number = state.next_number;
        state.next_number += 1;
        state.last_sent = Some(Instant::now());
        let message = wire::encode(&Numbered { number, body: request })?;
        let (connection, generation) = (Arc::clone(&state.connection), state.generation);
        state.calls.insert(number, PendingCall::Waiting(0));
        drop(state);
        match self.send(&message, &connection, generation, deadline) {
            Ok(is_sent) => Ok(SentCall { number, connection, generation, is_sent }),
            Err(error) => {
                self.lock().calls.remove(&number);
                Err(error.into())
            }
        }
    }

    /// Waits for the answer to a request, and asks the owner to forget one that takes too long.
    pub(super) fn finish(
        &self,
        sent: SentCall,
        call: &'static str,
        limit: Duration,
        deadline: Deadline,
    ) -> Result<Answer, Failed> {
        let SentCall { number, connection, generation, is_sent } = sent;
        let answer = match is_sent {
            true => self.wait_for(number, &connection, generation, limit, deadline),
            false => Ok(None),
        };
        let mut state = self.lock();
        state.calls.remove(&number);
        match answer.map_err(|error| Failed { error, may_be_done: is_sent })? {
            Some(answer) => Ok(answer),
            None => {
                if state.generation == generation {
                    state.owe(Request::Forget(number));
                    state.pay();
                }
                let error =
                    Error::TimedOut { call, waited_ms: millis(limit), owner_pid: state.owner_pid };
                Err(Failed { error, may_be_done: is_sent })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::client::Client;
    use crate::wire::{CreateSpec, FolioSize};
    use crate::{Owner, Pool, PoolOptions};

    #[test]
    fn what_a_call_brings_that_was_begun_and_given_up_comes_back() {
        let place = tempfile::tempdir().unwrap();
        let owner = Owner::start(Pool::create(&PoolOptions::anonymous(4 << 20)).unwrap()).unwrap();
        owner.serve(place.path().join("s")).unwrap();
        let client = Client::connect(place.path().join("s")).unwrap();
        for is_answered in [false, true] {
            let spec = CreateSpec::named("a", 4096, FolioSize::BestFit).unwrap();
            let begun = client.begin(Request::Create(vec![spec])).unwrap();
            if is_answered {
                // Answers come in order, and a thread that waits for one reads those before.
                assert_eq!(client.pool_stat().unwrap().reserved_bytes, 4096);
            }
            drop(begun);
            let until = Instant::now() + Duration::from_secs(30);
            while client.pool_stat().unwrap().reserved_bytes != 0 {
                assert!(Instant::now() < until, "what was reserved is not given back");
            }
        }
    }
}
