//! Messages: whatever decodes is encoded again to one and the same form.

use std::fmt::Debug;

use pgmap::mm::extent::Extent;
use pgmap::wire::{
    self, Event, FileEvent, Hello, MAX_LABEL_CHARS, Numbered, Reply, Request, Welcome,
};
use pgmap::{Error, Refusal};
use serde::{Deserialize, Serialize};

/// The first byte says what the others are to be.
pub fn wire(bytes: &[u8]) {
    let Some((&kind, message)) = bytes.split_first() else { return };
    match kind % 7 {
        0 => {
            if let Some(request) = round_trip::<Numbered<Request>>(message) {
                assert!(!request.body.name().is_empty());
            }
        }
        1 => {
            if let Some(reply) = round_trip::<Numbered<Reply>>(message) {
                check_reply(&reply.body);
            }
        }
        2 => drop(round_trip::<Event>(message)),
        3 => {
            if let Some(hello) = round_trip::<Hello>(message) {
                let label = wire::clean_label(&hello.label);
                assert!(label.chars().count() <= MAX_LABEL_CHARS);
                assert!(!label.chars().any(char::is_control), "{label:?}");
                assert_eq!(wire::clean_label(&label), label);
            }
        }
        4 => drop(round_trip::<Result<Welcome, Refusal>>(message)),
        5 => {
            if let Some(refusal) = round_trip::<Refusal>(message) {
                check_refusal(&refusal);
            }
        }
        _ => drop(round_trip::<Vec<FileEvent>>(message)),
    }
}

/// Decodes a message and encodes it again: no longer than it was, and the same each time.
fn round_trip<T>(message: &[u8]) -> Option<T>
where
    T: Serialize + for<'a> Deserialize<'a> + Debug,
{
    let decoded: T = match wire::decode(message) {
        Ok(decoded) => decoded,
        Err(error) => {
            assert!(matches!(error, Error::Protocol { .. }), "{error}");
            return None;
        }
    };
    let Ok(encoded) = wire::encode(&decoded) else {
        assert!(message.len() > wire::MAX_MESSAGE_BYTES, "a message that came does not go");
        return None;
    };
    assert!(encoded.len() <= message.len());
    let again: T = wire::decode(&encoded).unwrap();
    assert_eq!(format!("{decoded:?}"), format!("{again:?}"));
    assert_eq!(wire::encode(&again).unwrap(), encoded);
    Some(decoded)
}

fn check_reply(reply: &Reply) {
    match reply {
        Reply::Refused(refusal) => check_refusal(refusal),
        Reply::Created(drafts) => {
            let words = drafts.iter().flatten().flat_map(|draft| &draft.extents);
            words.for_each(|&words| check_extent(words));
        }
        Reply::Leased { grants, .. } => grants.iter().for_each(|grant| check_extent(grant.extent)),
        _ => {}
    }
}

fn check_extent(words: [u64; 3]) {
    if let Some(extent) = Extent::from_words(words) {
        assert_eq!(extent.to_words(), words);
        assert!(extent.first().is_aligned(extent.head_level));
        assert!(extent.run.nr_pages() >= extent.head_level.nr_pages());
    }
}

/// A peer may say nothing, and any number; showing it must not fail.
fn check_refusal(refusal: &Refusal) {
    drop(refusal.to_string());
    let _number = refusal.errno();
    assert!(!refusal.kind().is_empty());
}
