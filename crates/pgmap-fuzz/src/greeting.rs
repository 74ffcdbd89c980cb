//! The first message of a connection: a client is taken in, or refused and none the wiser.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use pgmap::mm::drain::ClientId;
use pgmap::os::Doorbell;
use pgmap::owner::clients::ClientIdentity;
use pgmap::owner::core::{Core, Outcome};
use pgmap::owner::session::{Reaction, Session};
use pgmap::wire::{self, Numbered, Reply, Request, Welcome};
use pgmap::{Pool, PoolOptions, Refusal};

use crate::catalog::place;

const POOL_BYTES: u64 = 4 << 20;
/// Descriptors that a new client is handed, and one that kept its ledger.
const NR_HANDED: [usize; 2] = [5, 4];

thread_local! {
    static OWNER: RefCell<Greeted> = RefCell::new(Greeted::new());
}

/// The first byte says which descriptors come with the message, which is the rest.
pub fn greeting(bytes: &[u8]) {
    let Some((&selector, message)) = bytes.split_first() else { return };
    OWNER.with_borrow_mut(|owner| owner.greet(selector, message));
}

/// An owner's books with one client that lost its connection.
struct Greeted {
    core: Core,
    doorbell: Doorbell,
    disconnected: ClientId,
    ledger: OwnedFd,
    place: tempfile::TempDir,
}

impl Greeted {
    fn new() -> Self {
        let place = place();
        let options = PoolOptions::in_directory(place.path().join("pool"), POOL_BYTES);
        let mut core = Core::open(Arc::new(Pool::create(&options).unwrap())).unwrap();
        let (disconnected, attachment) = core.attach(ClientIdentity::own(), false).unwrap();
        let doorbell = Doorbell::new().unwrap();
        Self { core, doorbell, disconnected, ledger: attachment.ledger, place }
    }

    fn greet(&mut self, selector: u8, message: &[u8]) {
        let fds = self.descriptors(selector);
        let nr_clients = self.nr_clients();
        let mut session = Session::Greeting;
        match self.hear(&mut session, message, fds) {
            Reaction::Send(said, handed) => {
                let welcome: Result<Welcome, Refusal> = wire::decode(&said).unwrap();
                let client = session.client().unwrap();
                assert_eq!(welcome.unwrap().client, client.0);
                let is_resumed = client == self.disconnected;
                assert_eq!(handed.len(), NR_HANDED[usize::from(is_resumed)]);
                if !is_resumed {
                    self.leave(&mut session);
                }
            }
            Reaction::Close(said, why) => {
                assert!(session.client().is_none() && !why.is_empty());
                let said: Result<Welcome, Refusal> = wire::decode(&said.unwrap()).unwrap();
                assert!(!said.unwrap_err().to_string().is_empty());
            }
            other => panic!("{other:?} to a greeting"),
        }
        assert_eq!(self.nr_clients(), nr_clients);
    }

    fn hear(&mut self, session: &mut Session, message: &[u8], fds: Vec<OwnedFd>) -> Reaction {
        let Self { core, doorbell, .. } = self;
        session.on_message(core, doorbell, || Ok(ClientIdentity::own()), message, fds, true)
    }

    /// The client's own description of its ledger, another one, none, or a file that is no ledger.
    fn descriptors(&self, selector: u8) -> Vec<OwnedFd> {
        let own = || self.ledger.try_clone().unwrap();
        let opened = |name: &str| {
            let path = self.place.path().join("pool").join(name);
            OwnedFd::from(File::open(path).unwrap())
        };
        match selector % 6 {
            0 => Vec::new(),
            1 => vec![own()],
            2 => vec![opened(&format!("ledgers/{}", self.disconnected.0))],
            3 => vec![opened("data")],
            4 => vec![own(), own()],
            _ => vec![self.doorbell.try_clone().unwrap().into()],
        }
    }

    /// A client that was taken in leaves, and is not heard any more.
    fn leave(&mut self, session: &mut Session) {
        let leave = wire::encode(&Numbered { number: 7, body: Request::Leave }).unwrap();
        let Reaction::Send(said, _) = self.hear(session, &leave, Vec::new()) else {
            panic!("no answer");
        };
        let said: Numbered<Reply> = wire::decode(&said).unwrap();
        assert!(said.number == 7 && matches!(said.body, Reply::Done));
        assert!(matches!(self.hear(session, &leave, Vec::new()), Reaction::Close(None, _)));
    }

    fn nr_clients(&mut self) -> u64 {
        match self.core.handle(self.disconnected, Request::PoolStat) {
            Outcome::Answer(Reply::PoolStat(info)) => info.nr_clients,
            outcome => panic!("{outcome:?}"),
        }
    }
}
