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
//! its sender cannot be told which request failed; its process keeps its holds until it ends.

use std::os::fd::OwnedFd;

use pgmap_mm::drain::ClientId;
use pgmap_os::{Access, Doorbell};

use crate::error::Error;
use crate::owner::clients::{Attachment, Identity};
use crate::owner::core::{Core, Outcome, Ticket};
use crate::refusal::Refusal;
use crate::wire::{self, Hello, Numbered, Reply, Request, VERSION, Welcome};

/// What the loop must do next for a connection.
#[derive(Debug)]
pub(crate) enum Reaction {
    /// Send this.
    Send(Vec<u8>, Vec<OwnedFd>),
    /// Send the answer to this ticket under this number, when it comes.
    Await(Ticket, u64),
    /// Send this, if anything, and close; the text says why.
    Close(Option<Vec<u8>>, String),
}

/// A connection's state.
#[derive(Debug)]
pub(crate) enum Session {
    /// Nothing said yet.
    Greeting,
    /// A client.
    Attached(ClientId),
    /// A client that left.
    Gone,
}

/// The owner's answer to a greeting.
pub(crate) type Greeting = Result<Welcome, Refusal>;

impl Session {
    /// The client behind the connection.
    pub(crate) const fn client(&self) -> Option<ClientId> {
        match self {
            Self::Attached(client) => Some(*client),
            Self::Greeting | Self::Gone => None,
        }
    }

    /// Takes one message. `identity` is asked for once, at the greeting.
    pub(crate) fn on_message(
        &mut self,
        core: &mut Core,
        doorbell: &Doorbell,
        identity: impl FnOnce() -> Result<Identity, Error>,
        message: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Reaction {
        match *self {
            Self::Greeting => match self.greet(core, doorbell, identity, message, fds) {
                Ok(reaction) => reaction,
                Err(error) => {
                    let why = error.to_string();
                    let said = wire::encode(&Greeting::Err(error.into())).ok();
                    Reaction::Close(said, why)
                }
            },
            Self::Attached(client) => self.serve(core, client, message, &fds),
            Self::Gone => Reaction::Close(None, "a message after Leave".into()),
        }
    }

    fn greet(
        &mut self,
        core: &mut Core,
        doorbell: &Doorbell,
        identity: impl FnOnce() -> Result<Identity, Error>,
        message: &[u8],
        fds: Vec<OwnedFd>,
    ) -> Result<Reaction, Error> {
        let hello: Hello = wire::decode(message)?;
        if hello.version != VERSION {
            let why = format!("the client speaks version {}, the owner {VERSION}", hello.version);
            return Err(Refusal::Invalid { why }.into());
        }
        let identity = identity()?;
        let (client, welcome, ledger) = match (hello.resume, fds.first()) {
            (None, None) => {
                let (client, attachment) = core.attach(identity, hello.is_registered)?;
                let Attachment { welcome, ledger } = attachment;
                (client, welcome, Some(ledger))
            }
            (Some(number), Some(shown)) if fds.len() == 1 => {
                let client = core.resume(number, identity, shown).ok_or_else(|| {
                    let why = format!("client {number} has no ledger here that it could resume");
                    Refusal::Invalid { why }
                })?;
                (client, core.welcome(client, hello.is_registered), None)
            }
            _ => {
                let why = format!("a greeting with {} descriptors", fds.len());
                return Err(Refusal::Invalid { why }.into());
            }
        };
        *self = Self::Attached(client);
        let pool = &core.pool;
        let mut handed = vec![
            pool.data.try_clone_fd()?,
            pool.vmemmap.reopen_handle(Access::ReadOnly)?,
            pool.index.reopen_handle(Access::ReadOnly)?,
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
    ) -> Reaction {
        let request: Numbered<Request> = match wire::decode(message) {
            Ok(request) if fds.is_empty() => request,
            Ok(_) => return Reaction::Close(None, "a request with descriptors".into()),
            Err(error) => return Reaction::Close(None, error.to_string()),
        };
        if matches!(request.body, Request::Leave) {
            *self = Self::Gone;
        }
        match core.handle(client, request.body) {
            Outcome::Answer(reply) => {
                give_back_untellable(core, client, request.number, &reply);
                answer(request.number, reply)
            }
            Outcome::Later(ticket) => Reaction::Await(ticket, request.number),
        }
    }
}

/// Gives up drafts that the client will never hear of, because the answer that names them is too
/// long for a message: its refusals may repeat long names.
fn give_back_untellable(core: &mut Core, client: ClientId, number: u64, reply: &Reply) {
    let Reply::Created(drafts) = reply else { return };
    if wire::encode(&Numbered { number, body: reply }).is_err() {
        let ids = drafts.iter().flatten().map(|draft| draft.id).collect();
        drop(core.handle(client, Request::Abort(ids)));
    }
}

/// Takes some of the holders out of a reply that names too many for one message.
fn shorten(reply: &mut Reply) -> bool {
    let holders = match reply {
        Reply::Who(holders, is_cut) => {
            *is_cut = true;
            holders
        }
        Reply::Refused(Refusal::Held { holders, .. }) => holders,
        _ => return false,
    };
    let half = holders.len() / 2;
    holders.truncate(half);
    half > 0
}

/// Encodes a reply; one that does not fit names fewer holders, or becomes a refusal that says so.
pub(crate) fn answer(number: u64, mut reply: Reply) -> Reaction {
    while wire::encode(&Numbered { number, body: &reply }).is_err() && shorten(&mut reply) {}
    let encoded = wire::encode(&Numbered { number, body: reply })
        .or_else(|error| wire::encode(&Numbered { number, body: Reply::Refused(error.into()) }));
    match encoded {
        Ok(bytes) => Reaction::Send(bytes, Vec::new()),
        Err(error) => Reaction::Close(None, error.to_string()),
    }
}
