//! An operator sets and removes quotas and water marks while clients use the pool.

use pgmap::quota::{QuotaLimits, QuotaOf};
use pgmap::{Client, Error, FileName, WaterMarks};

use crate::changes::{DEADLINE_MS, judge};
use crate::episode::Episode;
use crate::model::PAGE;
use crate::model::quotas::Limits;
use crate::verdict::{Asked, Verb};

/// The prefixes that quotas are for: all files, all drafts, a name.
pub fn prefix_of(which: u8) -> String {
    match which {
        0 => "file".to_owned(),
        1 => "draft".to_owned(),
        which => format!("file{}", which - 2),
    }
}

/// Sets a quota, or removes it if there is neither limit.
pub fn set(
    episode: &Episode,
    client: &Client,
    which: u8,
    (files, pages): (u8, u16),
) -> Result<(), Error> {
    let prefix = prefix_of(which);
    let limits = Limits {
        files: (files > 0).then_some(files.into()),
        bytes: (pages > 0).then_some(u64::from(pages) * PAGE),
    };
    let is_set = files > 0 || pages > 0;
    let asked = Asked::now(episode);
    episode.model.borrow_mut().quotas.ask(&prefix, is_set.then_some(limits), asked.from);
    let of = QuotaOf::Prefix(FileName::new(&prefix)?);
    let result = match is_set {
        true => {
            let Limits { files, bytes } = limits;
            client.set_quota(of, QuotaLimits { files, bytes, clients: None })
        }
        false => client.remove_quota(of),
    };
    judge(episode, asked, Verb::Quota(&prefix), Some(DEADLINE_MS), &result);
    let end = asked.end(episode, &result);
    episode.model.borrow_mut().quotas.ended(asked.from, end);
    result
}

/// Looks at all quotas, each of which may be there as it is.
pub fn look(episode: &Episode, client: &Client) -> Result<(), Error> {
    let asked = Asked::now(episode);
    let listed = client.quotas();
    judge(episode, asked, Verb::Look, Some(DEADLINE_MS), &listed);
    let model = episode.model.borrow();
    let window = (asked.from, episode.machine.steps());
    for quota in listed? {
        let QuotaOf::Prefix(prefix) = &quota.of else {
            episode.fail(format!("nobody has set this quota: {quota:?}"));
            continue;
        };
        let QuotaLimits { files, bytes, .. } = quota.limits;
        let is_it = |limits: Limits| limits == Limits { files, bytes };
        if !model.quotas.may_be(&prefix.to_string(), window, is_it) {
            episode.fail(format!("nobody has set this quota: {quota:?}"));
        }
    }
    Ok(())
}

/// Sets water marks, in pages.
pub fn set_marks(episode: &Episode, client: &Client, (low, high): (u16, u16)) -> Result<(), Error> {
    let asked = Asked::now(episode);
    let (low_bytes, high_bytes) = (u64::from(low) * PAGE, u64::from(high) * PAGE);
    let result = client.set_water_marks(WaterMarks { low_bytes, high_bytes });
    judge(episode, asked, Verb::Change, Some(DEADLINE_MS), &result);
    result
}
