//! One connection as a state machine without IO: messages in, reactions out.
//!
//! # States
//!
//! ```text
//!   Greeting ── Hello ──▶ Attached ── Leave ──▶ Gone
//!       └── anything else ──▶ closed
//! ```
//!
//! Whatever arrives is an allegation (I9). A message that cannot be read closes the connection, for
//! its sender cannot learn which request failed; its process keeps its holds until it ends.

use std::os::fd::OwnedFd;

use pgmap_mm::drain::ClientId;
use pgmap_os::{Doorbell, FileAccess};

use crate::error::Error;
use crate::owner::clients::{Attachment, ClientIdentity, handle_of, is_out_of_descriptors};
use crate::owner::core::{Core, Outcome, Ticket};
use crate::refusal::{ClientHold, Refusal};
use crate::wire::{self, Hello, Numbered, Reply, Request, VERSION, Welcome};

/// Most requests of one client that wait at a time; it hears the others refused.
pub(crate) const MAX_AWAITED: usize = 256;

/// What the loop must do next for a connection.
#[derive(Debug)]
pub enum Reaction {
    /// Send this.
    Send(Vec<u8>, Vec<OwnedFd>),
    /// Send the answer to this ticket under this number, when it comes.
    Await(Ticket, u64),
    /// Nobody waits for the answer of this number any more.
    Forget(u64),
    /// Another message follows soon.
    StayAwake,
    /// Send this, if anything, and close; the text says why.
    Close(Option<Vec<u8>>, String),
}

/// A connection's state.
#[derive(Debug)]
pub enum Session {
    /// Nothing said yet.
    Greeting,
    /// A client.
    Attached(ClientId),
    /// A client that left.
    Gone,
}

/// The owner's answer to a greeting.
pub type Greeting = Result<Welcome, Refusal>;

impl Session {
    /// The client behind the connection.
    #[must_use]
    pub const fn client(&self) -> Option<ClientId> {
        match self {
            Self::Attached(client) => Some(*client),
            Self::Greeting | Self::Gone => None,
        }
    }

    /// Takes one message. `identity` is asked for once, at the greeting; `has_room` says whether a
    /// request may wait.
    pub fn on_message(
        &mut self,
        core: &mut Core,
        doorbell: &Doorbell,
        identity: impl FnOnce() -> Result<ClientIdentity, Error>,
        message: &[u8],
        fds: Vec<OwnedFd>,
        has_room: bool,
    ) -> Reaction {
        match *self {
            Self::Greeting => match self.greet(core, doorbell, identity, message, fds) {
                Ok(reaction) => reaction,
                Err(error) => {
                    let error = if is_out_of_descriptors(&error) {
                        core.clients.full().into()
                    } else {
                        error
                    };
                    let why = error.to_string();
                    let said = wire::encode(&Greeting::Err(error.into())).ok();
                    Reaction::Close(said, why)
                }
            },
            Self::Attached(client) => self.serve(core, client, message, &fds, has_room),
            Self::Gone => Reaction::Close(None, "a message after Leave".into()),
        }
    }

    fn greet(
        &mut self,
        core: &mut Core,
        doorbell: &Doorbell,
        identity: impl FnOnce() -> Result<ClientIdentity, Error>,
        message: &[u8],
        mut fds: Vec<OwnedFd>,
    ) -> Result<Reaction, Error> {
        let hello: Hello = wire::decode(message)?;
        if hello.version != VERSION {
            let why = format!("the client speaks version {}, the owner {VERSION}", hello.version);
            return Err(Refusal::Invalid { why }.into());
        }
        let label = wire::clean_label(&hello.label);
        let is_read_only = hello.is_read_only;
        let identity = ClientIdentity { label, is_read_only, ..identity()? };
        let nr_shown = fds.len();
        let (client, welcome, ledger) = match (hello.resume, fds.pop()) {
            (None, None) => {
                let (client, attachment) = core.attach(identity, hello.is_registered)?;
                let Attachment { welcome, ledger } = attachment;
                (client, welcome, Some(ledger))
            }
            (Some(number), Some(shown)) if nr_shown == 1 => {
                let client = core.resume(number, identity, shown)?.ok_or_else(|| {
                    let why = format!("client {number} has no ledger here that it could resume");
                    Refusal::Invalid { why }
                })?;
                (client, core.welcome(client, hello.is_registered), None)
            }
            _ => {
                let why = format!("a greeting with {nr_shown} descriptors");
                return Err(Refusal::Invalid { why }.into());
            }
        };
        *self = Self::Attached(client);
        let pool = &core.pool;
        let mut handed = vec![
            handle_of(&pool.data, core.access_of(client))?,
            pool.vmemmap.reopen_handle(FileAccess::ReadOnly)?,
            pool.index.reopen_handle(FileAccess::ReadOnly)?,
            OwnedFd::from(doorbell.try_clone()?),
        ];
        handed.extend(ledger);
        Ok(Reaction::Send(wire::encode(&Greeting::Ok(welcome))?, handed))
    }

    fn serve(
        &mut self,
        core: &mut Core,
        client: ClientId,
        message: &[u8],
        fds: &[OwnedFd],
        has_room: bool,
    ) -> Reaction {
        let request: Numbered<Request> = match wire::decode(message) {
            Ok(request) if fds.is_empty() => request,
            Ok(_) => return Reaction::Close(None, "a request with descriptors".into()),
            Err(error) => return Reaction::Close(None, error.to_string()),
        };
        match request.body {
            Request::Leave => *self = Self::Gone,
            Request::Forget(number) => return Reaction::Forget(number),
            Request::Wake => return Reaction::StayAwake,
            _ if !has_room && request.body.may_wait() => {
                let refusal = Refusal::TooMuch {
                    what: "requests of one client that wait; wait for some of them".into(),
                    value: MAX_AWAITED as u64 + 1,
                    limit: MAX_AWAITED as u64,
                };
                return answer(request.number, Reply::Refused(refusal));
            }
            _ => {}
        }
        match core.handle(client, request.body) {
            Outcome::Answer(reply @ (Reply::Backings(_) | Reply::Subscribed { .. })) => {
                match core.fds_of(client, &reply) {
                    Ok(fds) => match answer(request.number, reply) {
                        Reaction::Send(bytes, _) => Reaction::Send(bytes, fds),
                        other => other,
                    },
                    Err(error) => answer(request.number, Reply::Refused(error.into())),
                }
            }
            Outcome::Answer(reply) => tell(core, client, request.number, reply),
            Outcome::Later(ticket) => Reaction::Await(ticket, request.number),
        }
    }
}

/// Encodes the answer to a client. What it reserves and cannot tell is given back.
pub(crate) fn tell(core: &mut Core, client: ClientId, number: u64, reply: Reply) -> Reaction {
    give_back_untellable(core, client, number, &reply);
    answer(number, reply)
}

/// Gives up drafts and leases that the client will never hear of, because the answer that names
/// them is too long for a message, however short its refusals: then it becomes a refusal, and
/// nothing was done.
fn give_back_untellable(core: &mut Core, client: ClientId, number: u64, reply: &Reply) {
    let (Reply::Created(_) | Reply::Leased { .. }) = reply else { return };
    if encoded_short(number, reply.clone()).is_ok() {
        return;
    }
    let back = match reply {
        Reply::Created(drafts) => {
            Request::Abort(drafts.iter().flatten().map(|draft| draft.id).collect())
        }
        Reply::Leased { grants, .. } => {
            Request::ReleaseLeases(grants.iter().map(|grant| grant.lease).collect())
        }
        _ => return,
    };
    drop(core.handle(client, back));
}

/// Takes out of a reply that is too long for a message what it can do without, a step at a time:
/// half of the holders, what commits say of life words (whose writers then ring a bell too many),
/// and the ends of long names in refusals. Never what was done. False if there is nothing left to
/// take.
fn shorten(reply: &mut Reply) -> bool {
    match reply {
        Reply::Who(holders, is_cut) => {
            *is_cut = true;
            halve(holders)
        }
        Reply::Quarantined(holders) | Reply::Refused(Refusal::Held { holders, .. }) => {
            halve(holders)
        }
        Reply::Committed(results) => {
            let is_long = results.iter().flatten().any(|done| !done.life.is_empty());
            results.iter_mut().flatten().for_each(|done| done.life.clear());
            is_long | shorten_refusals(results)
        }
        Reply::Created(results) => shorten_refusals(results),
        Reply::Unlinked(results) => shorten_refusals(results),
        _ => false,
    }
}

/// Keeps the first half of them; false if there is one at most.
fn halve(holders: &mut Vec<ClientHold>) -> bool {
    let is_long = holders.len() > 1;
    holders.truncate(holders.len().div_ceil(2));
    is_long
}

fn shorten_refusals<T>(results: &mut [Result<T, Refusal>]) -> bool {
    let mut is_long = false;
    for refusal in results.iter_mut().filter_map(|result| result.as_mut().err()) {
        is_long |= refusal.shorten();
        if let Refusal::Held { holders, .. } = refusal {
            is_long |= halve(holders);
        }
    }
    is_long
}

fn encoded_short(number: u64, mut reply: Reply) -> Result<Vec<u8>, Error> {
    loop {
        let encoded = wire::encode(&Numbered { number, body: &reply });
        if encoded.is_ok() || !shorten(&mut reply) {
            return encoded;
        }
    }
}

/// Encodes a reply. One that does not fit becomes shorter; what then does not fit either is a
/// refusal that says so.
pub(crate) fn answer(number: u64, reply: Reply) -> Reaction {
    let encoded = encoded_short(number, reply)
        .or_else(|error| wire::encode(&Numbered { number, body: Reply::Refused(error.into()) }));
    match encoded {
        Ok(bytes) => Reaction::Send(bytes, Vec::new()),
        Err(error) => Reaction::Close(None, error.to_string()),
    }
}
