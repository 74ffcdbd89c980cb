//! What a client asks again because the owner that it had asked is gone.
//!
//! That owner may have done it, and its answer was lost. Names may stand for other files since: one
//! that was put after the change, or that replaced what was to be changed. The client says which
//! files it meant, by the numbers that they had in the index when it asked first, and no other file
//! is changed. Numbers are never given twice, so a file that somebody put since cannot be taken for
//! one of them.
//!
//! A file that was given back the name meanwhile is the file that was meant, and is changed.

use pgmap_mm::drain::ClientId;

use crate::name::FileName;
use crate::owner::core::{Core, Outcome};
use crate::refusal::Refusal;
use crate::wire::{self, Reply, Request};

impl Core {
    /// Does what is asked again to those of the named files that have the numbers `seen`. To the
    /// caller there are no others.
    pub(crate) fn handle_again(
        &mut self,
        client: ClientId,
        request: &[u8],
        seen: &[Option<u64>],
    ) -> Outcome {
        let invalid = |why: String| Outcome::Answer(Reply::Refused(Refusal::Invalid { why }));
        let request: Request = match wire::decode(request) {
            Ok(request) => request,
            Err(error) => return invalid(format!("what is asked again is {error}")),
        };
        let Some(names) = request.changed_names().map(<[_]>::to_vec) else {
            return invalid(format!("a {} changes no file by its name", request.name()));
        };
        if names.len() != seen.len() {
            let (nr_names, nr_seen) = (names.len(), seen.len());
            return invalid(format!("{nr_names} names are asked again, with {nr_seen} numbers"));
        }
        let is_meant: Vec<bool> =
            names.iter().zip(seen).map(|(name, &seen)| self.is_file(name, seen)).collect();
        let meant: Vec<FileName> =
            names.iter().zip(&is_meant).filter(|of| *of.1).map(|of| of.0.clone()).collect();
        let outcome = match request {
            request if meant.len() == names.len() => return self.handle(client, request),
            Request::Unlink(_) | Request::UnlinkUnlessHeld(_) if meant.is_empty() => {
                Outcome::Answer(Reply::Unlinked(Vec::new()))
            }
            Request::Unlink(_) => self.handle(client, Request::Unlink(meant)),
            Request::UnlinkUnlessHeld(_) => self.handle(client, Request::UnlinkUnlessHeld(meant)),
            // All others name one file.
            _ => Outcome::Answer(Reply::Refused(not_found(&names[0]))),
        };
        let Outcome::Answer(Reply::Unlinked(done)) = outcome else { return outcome };
        let mut done = done.into_iter();
        let answers = names.iter().zip(is_meant).map(|(name, is_meant)| {
            is_meant.then(|| done.next()).flatten().unwrap_or_else(|| Err(not_found(name)))
        });
        Outcome::Answer(Reply::Unlinked(answers.collect()))
    }

    /// Whether a name stands for the file of this number.
    fn is_file(&self, name: &FileName, number: Option<u64>) -> bool {
        self.files.get(name).is_some_and(|file| Some(file.id.0) == number)
    }
}

fn not_found(name: &FileName) -> Refusal {
    Refusal::NotFound { name: name.to_string() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pgmap_mm::level::PAGE_BYTES;

    use super::*;
    use crate::owner::clients::{Attachment, ClientIdentity};
    use crate::owner::made_file::make_file;
    use crate::wire::OnDeadline;
    use crate::{Pool, PoolOptions};

    fn name(text: &str) -> FileName {
        FileName::new(text).unwrap()
    }

    /// Books with some files.
    struct World {
        core: Core,
        client: ClientId,
        _attachment: Attachment,
    }

    impl World {
        fn new(names: &[&str]) -> Self {
            let pool = Pool::create(&PoolOptions::anonymous(64 * PAGE_BYTES)).unwrap();
            let mut core = Core::open(Arc::new(pool)).unwrap();
            let (client, attachment) = core.attach(ClientIdentity::own(), false).unwrap();
            for text in names {
                make_file(&mut core, client, &name(text), PAGE_BYTES);
            }
            Self { core, client, _attachment: attachment }
        }

        fn number(&self, text: &str) -> Option<u64> {
            self.core.files.get(&name(text)).map(|file| file.id.0)
        }

        /// Somebody else takes the name's file away and puts another.
        fn replace(&mut self, text: &str) {
            let unlink = Request::Unlink(vec![name(text)]);
            assert!(matches!(self.core.handle(self.client, unlink), Outcome::Answer(_)));
            make_file(&mut self.core, self.client, &name(text), PAGE_BYTES);
        }

        fn again(&mut self, request: &Request, seen: &[Option<u64>]) -> Reply {
            let request = wire::encode(request).unwrap();
            let request = Request::Again { request, seen: seen.to_vec() };
            match self.core.handle(self.client, request) {
                Outcome::Answer(reply) => reply,
                Outcome::Later(ticket) => panic!("{ticket:?}"),
            }
        }
    }

    /// A client renamed "a" to "b", and its owner was killed before it could answer. Somebody put
    /// another "a" then, and the rename that was asked again moved that one: "b" was lost (seed
    /// 263721284033595 of the simulation).
    #[test]
    fn what_was_put_since_is_not_changed() {
        let file = || name("a");
        let (deadline_ms, on_deadline) = (0, OnDeadline::Fail);
        for request in [
            Request::Rename { from: file(), to: name("b"), replace: true },
            Request::Unlink(vec![file()]),
            Request::UnlinkUnlessHeld(vec![file()]),
            Request::Truncate { name: file(), len_bytes: 0, deadline_ms, on_deadline },
            Request::Punch {
                name: file(),
                offset: 0,
                len_bytes: PAGE_BYTES,
                deadline_ms,
                on_deadline,
            },
        ] {
            let mut world = World::new(&["a", "b"]);
            let seen = [world.number("a")];
            world.replace("a");
            let as_it_is = (world.number("a"), world.number("b"));
            for seen in [seen, [None]] {
                match world.again(&request, &seen) {
                    Reply::Refused(Refusal::NotFound { name }) => assert_eq!(name, "a"),
                    Reply::Unlinked(each) => {
                        assert!(matches!(each[..], [Err(Refusal::NotFound { .. })]), "{each:?}");
                    }
                    other => panic!("{}: {other:?}", request.name()),
                }
            }
            assert_eq!((world.number("a"), world.number("b")), as_it_is, "{}", request.name());
            let now = [world.number("a")];
            assert!(!matches!(world.again(&request, &now), Reply::Refused(_)));
            let is_same = (world.number("a"), world.number("b")) == as_it_is;
            assert_eq!(is_same, matches!(request.name(), "truncate" | "punch"));
        }
    }

    #[test]
    fn of_several_files_those_go_that_were_meant() {
        for unlink in [Request::Unlink, Request::UnlinkUnlessHeld] {
            let mut world = World::new(&["a", "b", "c"]);
            let names = ["a", "b", "missing", "c", "a"];
            let seen = names.map(|name| world.number(name));
            world.replace("b");
            let Reply::Unlinked(each) = world.again(&unlink(names.map(name).to_vec()), &seen)
            else {
                panic!("it was refused")
            };
            let is_done: Vec<bool> = each.iter().map(Result::is_ok).collect();
            assert_eq!(is_done, [true, false, false, true, false]);
            assert_eq!(world.core.files.values().count(), 1);
            assert!(world.number("b").is_some());
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let mut world = World::new(&["a"]);
        let number = world.number("a");
        let unlink = Request::Unlink(vec![name("a")]);
        let again = Request::Again { request: wire::encode(&unlink).unwrap(), seen: vec![number] };
        let is_invalid = |reply| matches!(reply, Reply::Refused(Refusal::Invalid { .. }));
        assert!(is_invalid(world.again(&again, &[number])), "again and again");
        assert!(is_invalid(world.again(&unlink, &[])), "without a number");
        assert!(is_invalid(world.again(&Request::PoolStat, &[])), "what changes nothing");
        let seen = vec![number];
        let garbage = Request::Again { request: vec![0xff; 9], seen };
        let Outcome::Answer(reply) = world.core.handle(world.client, garbage) else { panic!() };
        assert!(is_invalid(reply), "what is no request");
        assert_eq!(world.number("a"), number);
    }
}
