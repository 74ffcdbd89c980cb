//! Owners that are lost after they did what they were asked, and before the answer was there: the
//! client asks the next owner, and says of its refusal that the call may have been done.

use std::time::Duration;

use crate::support::way::Way;
use pgmap::{Client, Error, FolioSize, Refusal, Replace};

const MIB: u64 = 1 << 20;

/// What the refusal of a call says that may have been done: how it was refused at last.
fn may_be_done(result: Result<(), Error>, asked: &str) -> Refusal {
    match result {
        Err(error @ Error::Refused(Refusal::MayBeDone { .. })) => {
            assert_eq!(error.kind(), "may_be_done");
            assert!(error.to_string().contains(&format!("the {asked} may have been done")));
            let Error::Refused(Refusal::MayBeDone { refusal, call }) = error else { panic!() };
            assert_eq!(call, asked);
            *refusal
        }
        other => panic!("{other:?}"),
    }
}

fn put(client: &Client, name: &str) {
    client.create(name, MIB, FolioSize::BestFit).unwrap().commit().unwrap();
}

/// Story: the second owner found nothing to unlink, and "no such file" was all that its caller
/// heard.
#[test]
fn an_unlink_that_is_refused_because_it_was_done_before_says_so() {
    let way = Way::new();
    put(&way.client, "a");
    way.lose_one();
    let refusal = may_be_done(way.client.unlink("a"), "unlink");
    assert_eq!(refusal, Refusal::NotFound { name: "a".into() });
    assert!(way.names().is_empty());
    // It is said of what was asked then only.
    let error = way.client.unlink("a").unwrap_err();
    assert_eq!(error.kind(), "not_found");
}

#[test]
fn a_rename_that_is_refused_because_it_was_done_before_says_so() {
    let way = Way::new();
    put(&way.client, "a");
    way.lose_one();
    let renamed = way.client.rename("a", "b", Replace::No);
    let refusal = may_be_done(renamed, "rename");
    assert_eq!(refusal, Refusal::NotFound { name: "a".into() });
    assert_eq!(way.names(), ["b"]);
}

/// Its draft is a file by now, which its successor does not know as a draft.
#[test]
fn a_commit_whose_answer_was_lost_says_that_it_may_have_been_done() {
    let way = Way::new();
    let mut writer = way.client.create("a", MIB, FolioSize::BestFit).unwrap();
    writer.write_all_at(0, &vec![7; MIB as usize]).unwrap();
    way.lose_one();
    let refusal = may_be_done(writer.commit(), "commit");
    assert!(matches!(refusal, Refusal::NoDraft { .. }), "{refusal:?}");
    assert_eq!(way.names(), ["a"]);
}

/// A question changes nothing, and what is refused twice for the same reason was not done.
#[test]
fn a_question_whose_answer_was_lost_is_asked_again_and_answered_plainly() {
    let way = Way::new();
    way.lose_one();
    assert_eq!(way.client.stat("a").unwrap_err().kind(), "not_found");
    way.lose_one();
    assert!(way.client.list().unwrap().is_empty());
    // An answer that is no refusal is none either.
    put(&way.client, "a");
    way.lose_one();
    way.client.truncate("a", 4096, Duration::ZERO).unwrap();
    assert_eq!(way.client.stat("a").unwrap().len_bytes, 4096);
}
