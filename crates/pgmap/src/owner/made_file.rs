//! A committed file in the books of an owner without a thread, for tests.

use pgmap_mm::drain::ClientId;

use crate::name::FileName;
use crate::owner::core::{Core, Outcome};
use crate::wire::{CommitSpec, CreateSpec, FolioSize, Reply, Request};

/// Makes the file `name` of small folios, which nobody writes to.
pub(crate) fn make_file(core: &mut Core, client: ClientId, name: &FileName, len_bytes: u64) {
    make_file_in(core, client, name, len_bytes, FolioSize::Pages4K);
}

/// As [`make_file`], of folios of `folio_size`.
pub(crate) fn make_file_in(
    core: &mut Core,
    client: ClientId,
    name: &FileName,
    len_bytes: u64,
    folio_size: FolioSize,
) {
    let spec = CreateSpec::new(name.clone(), len_bytes, folio_size);
    let outcome = core.handle(client, Request::Create(vec![spec]));
    // As the owner's loop does, between other things.
    while let Some(step) = core.next_step() {
        let result = step.take();
        core.step_taken(&step, result);
    }
    let answers = core.take_answers();
    let reply = match (&outcome, &answers[..]) {
        (Outcome::Answer(reply), []) | (Outcome::Later(_), [(_, reply)]) => reply,
        other => panic!("{other:?}"),
    };
    let Reply::Created(drafts) = reply else { panic!("{reply:?}") };
    let id = drafts[0].as_ref().unwrap().id;
    let outcome = core.handle(client, Request::Commit(vec![CommitSpec::new(id)]));
    assert!(matches!(outcome, Outcome::Answer(Reply::Committed(_))), "{outcome:?}");
}
