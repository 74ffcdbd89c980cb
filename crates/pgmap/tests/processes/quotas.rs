//! Quotas and water marks: what would exceed one is refused and says why, what is counted is right
//! whatever becomes of files and writers, and both are there after a restart.

use std::path::PathBuf;
use std::time::Duration;

use pgmap::quota::{QuotaInfo, QuotaLimits, QuotaOf};
use pgmap::{
    Client, CreateSpec, Error, FileName, FolioSize, Owner, Pool, PoolInfo, PoolOptions, Refusal,
    Replace, WaterMarks,
};

use crate::support::{self, Random, Second, block, serving_owner, wait_until};

const MIB: u64 = 1 << 20;
const POOL_BYTES: u64 = 32 * MIB;

#[test]
fn child_entry() {
    support::owner_role::run_if_asked(POOL_BYTES);
}

fn prefix(prefix: &str) -> QuotaOf {
    QuotaOf::Prefix(FileName::new(prefix).unwrap())
}

fn own_uid() -> QuotaOf {
    QuotaOf::Uid(rustix::process::geteuid().as_raw())
}

fn spec(name: &str, len_bytes: u64, priority: u8) -> CreateSpec {
    let name = FileName::new(name).unwrap();
    CreateSpec::new(name, len_bytes, FolioSize::Pages4K).evictable(priority)
}

fn put(client: &Client, name: &str, len_bytes: u64, priority: u8) -> Result<(), Error> {
    let bytes = block::make(7, len_bytes as usize);
    client.put_batch(vec![(spec(name, len_bytes, priority), &bytes[..])])?.remove(0)
}

fn quota(client: &Client, of: &QuotaOf) -> QuotaInfo {
    client.quotas().unwrap().into_iter().find(|quota| quota.of == *of).unwrap()
}

fn used(client: &Client, of: &QuotaOf) -> (u64, u64) {
    let QuotaInfo { used_bytes, used_files, .. } = quota(client, of);
    (used_bytes, used_files)
}

#[track_caller]
fn refused(result: Result<(), Error>) -> Refusal {
    let Err(Error::Refused(refusal)) = result else { panic!("{result:?}") };
    refusal
}

fn names(client: &Client) -> Vec<String> {
    client.list().unwrap().iter().map(|file| file.name.to_string()).collect()
}

#[test]
fn what_would_exceed_a_quota_is_refused_with_limit_use_number_and_way_out() {
    let (_owner, _place, socket) = serving_owner(POOL_BYTES);
    let client = Client::connect(&socket).unwrap();
    let kv = prefix("kv/");
    put(&client, "kv/before", 2 * MIB, 0).unwrap();
    client.set_quota(kv.clone(), QuotaLimits::new().bytes(4 * MIB).files(3)).unwrap();
    assert_eq!(used(&client, &kv), (2 * MIB, 1));
    let mut other = Second::ready("other", &socket);
    // 1 MiB and a byte take 257 frames.
    let too_much = other.ask(&format!("put kv/much 1 {}", 2 * MIB + 1));
    assert!(
        too_much.starts_with("err 122 the quota of prefix \"kv/\" is 4194304 bytes"),
        "{too_much}"
    );
    assert!(too_much.contains("2097152 are used, and 2101248 more wanted"), "{too_much}");
    assert!(too_much.contains("pgmap quota set"), "{too_much}");
    other.must(&format!("put elsewhere 1 {}", 2 * MIB + 1));
    other.must(&format!("put kv/one 1 {MIB}"));
    // What is being written counts.
    other.must(&format!("write kv/draft 1 {}", MIB / 2));
    assert_eq!(used(&client, &kv), (7 * MIB / 2, 3));
    let files = refused(put(&client, "kv/small", 4096, 0));
    let Refusal::OverQuota { of, what, limit, used: now, wanted, .. } = &files else {
        panic!("{files}")
    };
    assert_eq!((of.as_str(), what.as_str()), ("prefix \"kv/\"", "files"));
    assert_eq!((*limit, *now, *wanted), (3, 3, 1));
    assert_eq!((files.kind(), files.errno()), ("over_quota", 122));
    // A killed writer's draft does not count any more.
    other.kill();
    wait_until("the draft is given up", || (used(&client, &kv).1 == 2).then_some(()));
    assert_eq!(used(&client, &kv), (3 * MIB, 2));
    // Shorter and gone files do not either.
    client.truncate("kv/before", MIB, Duration::from_secs(1)).unwrap();
    assert_eq!(used(&client, &kv), (2 * MIB, 2));
    client.punch("kv/one", 0..MIB / 2, Duration::from_secs(1)).unwrap();
    assert_eq!(used(&client, &kv), (3 * MIB / 2, 2));
    client.unlink("kv/one").unwrap();
    drop(client.create("kv/aborted", MIB, FolioSize::BestFit).unwrap());
    wait_until("the abort arrived", || (used(&client, &kv) == (MIB, 1)).then_some(()));
    // A rename into the prefix counts, and one within it does not.
    let moved = client.rename("elsewhere", "kv/elsewhere", Replace::No);
    moved.unwrap();
    client.rename("kv/elsewhere", "kv/2", Replace::No).unwrap();
    assert_eq!(used(&client, &kv), (3 * MIB + 4096, 2));
    put(&client, "away", 2 * MIB, 0).unwrap();
    let moved = refused(client.rename("away", "kv/away", Replace::No));
    assert!(matches!(&moved, Refusal::OverQuota { what, .. } if what == "bytes"), "{moved}");
    // In the place of another it is counted instead of that.
    client.rename("away", "kv/2", Replace::Yes).unwrap();
    assert_eq!(used(&client, &kv), (3 * MIB, 2));
    client.remove_quota(kv.clone()).unwrap();
    put(&client, "kv/much", 10 * MIB, 0).unwrap();
    assert!(client.quotas().unwrap().is_empty());
    let none = refused(client.remove_quota(kv));
    assert_eq!(none.to_string(), "there is no quota of prefix \"kv/\"");
}

#[test]
fn quotas_and_what_is_used_of_them_outlive_a_killed_owner() {
    let directory = support::roomy();
    let place: PathBuf = directory.path().to_owned();
    let mut owner = Second::ready("create", &place);
    let client = Client::connect(place.join("s")).unwrap();
    let (kv, uid) = (prefix("kv/"), own_uid());
    client.set_quota(kv.clone(), QuotaLimits::new().bytes(4 * MIB)).unwrap();
    client.set_quota(uid.clone(), QuotaLimits::new().files(3).clients(9)).unwrap();
    client.set_quota(prefix("no/"), QuotaLimits::new().files(1)).unwrap();
    client.remove_quota(prefix("no/")).unwrap();
    let marks = WaterMarks { low_bytes: MIB, high_bytes: 2 * MIB };
    client.set_water_marks(marks).unwrap();
    put(&client, "kv/a", 2 * MIB, 0).unwrap();
    put(&client, "b", MIB, 0).unwrap();
    let draft = client.create("kv/draft", MIB, FolioSize::BestFit).unwrap();
    assert_eq!(used(&client, &uid), (4 * MIB, 3));
    owner.kill();
    let _second = Second::ready("open", &place);
    assert_eq!(used(&client, &kv), (2 * MIB, 1));
    assert_eq!(used(&client, &uid), (3 * MIB, 2));
    assert_eq!(quota(&client, &uid).limits, QuotaLimits::new().files(3).clients(9));
    assert_eq!(client.quotas().unwrap().len(), 2);
    assert_eq!(client.water_marks().unwrap(), marks);
    assert!(draft.commit().is_err());
    let over = refused(put(&client, "kv/c", 3 * MIB, 0));
    assert!(matches!(&over, Refusal::OverQuota { what, .. } if what == "bytes"), "{over}");
    put(&client, "c", MIB, 0).unwrap();
    let over = refused(put(&client, "d", MIB, 0));
    assert!(matches!(&over, Refusal::OverQuota { of, .. } if of.starts_with("uid ")), "{over}");
    assert_eq!(
        Some(client.stat("kv/a").unwrap().uid),
        match uid {
            QuotaOf::Uid(uid) => Some(uid),
            QuotaOf::Prefix(_) => None,
        }
    );
}

#[test]
fn a_full_prefix_evicts_its_own_least_recently_used_files_and_nobody_elses() {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(POOL_BYTES)).unwrap()).unwrap();
    let client = owner.client().unwrap();
    put(&client, "other", MIB, 1).unwrap();
    for name in ["kv/a", "kv/b", "kv/c"] {
        put(&client, name, MIB, 1).unwrap();
    }
    // Set late: files that are there are in its order too.
    let kv = prefix("kv/");
    client.set_quota(kv.clone(), QuotaLimits::new().bytes(4 * MIB)).unwrap();
    put(&client, "kv/d", MIB, 1).unwrap();
    drop(client.get("kv/a").unwrap());
    let held = client.get("kv/b").unwrap();
    put(&client, "kv/e", MIB, 1).unwrap();
    assert_eq!(names(&client), ["kv/a", "kv/b", "kv/d", "kv/e", "other"]);
    // What is held, or may not be evicted, stays, and the refusal says so.
    put(&client, "kv/kept", 2 * MIB, 0).unwrap();
    assert_eq!(names(&client).len(), 4, "{:?}", names(&client));
    let over = refused(put(&client, "kv/f", 5 * MIB / 2, 1));
    let Refusal::OverQuota { evictable_held_bytes, .. } = over else { panic!("{over}") };
    assert_eq!(evictable_held_bytes, MIB);
    assert_eq!(names(&client), ["kv/b", "kv/kept", "other"]);
    assert!(!held.is_reclaim_requested());
    drop(held);
    put(&client, "kv/f", 2 * MIB, 1).unwrap();
    assert_eq!(names(&client), ["kv/f", "kv/kept", "other"]);
    // What fits into no quota evicts nothing.
    refused(put(&client, "kv/g", 5 * MIB, 1));
    assert_eq!(names(&client), ["kv/f", "kv/kept", "other"]);
    client.set_quota(kv, QuotaLimits::new().files(2)).unwrap();
    put(&client, "kv/h", MIB, 1).unwrap();
    assert_eq!(names(&client), ["kv/h", "kv/kept", "other"]);
}

#[test]
fn a_user_has_as_many_clients_as_its_quota_says() {
    let (_owner, _place, socket) = serving_owner(POOL_BYTES);
    let client = Client::connect(&socket).unwrap();
    client.set_quota(own_uid(), QuotaLimits::new().clients(2)).unwrap();
    let second = Client::connect(&socket).unwrap();
    let full = Client::connect(&socket).unwrap_err();
    let Error::Refused(Refusal::OverQuota { what, limit: 2, used: 2, .. }) = &full else {
        panic!("{full}")
    };
    assert_eq!(what, "clients");
    drop(second);
    let _third = wait_until("the second left", || Client::connect(&socket).ok());
    let odd = refused(client.set_quota(prefix("a"), QuotaLimits::new().clients(2)));
    assert!(odd.to_string().contains("limit those of a uid"), "{odd}");
    let odd = refused(client.set_quota(prefix("a"), QuotaLimits::new()));
    assert!(odd.to_string().contains("it limits nothing"), "{odd}");
}

/// Needs root, who can be somebody else.
#[test]
fn another_user_has_a_quota_of_its_own_and_sets_none() {
    let test = "another_user_has_a_quota_of_its_own_and_sets_none";
    let is_root = rustix::process::geteuid().is_root();
    if !is_root || std::process::Command::new("setpriv").arg("--version").output().is_err() {
        println!("{test}: skipped, for it needs root and setpriv");
        return;
    }
    let (_owner, place, socket) = serving_owner(POOL_BYTES);
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    let client = Client::connect(&socket).unwrap();
    let theirs = QuotaOf::Uid(12_345);
    client.set_quota(theirs.clone(), QuotaLimits::new().bytes(2 * MIB)).unwrap();
    let wrapper = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"];
    let mut other = Second::start_by(&wrapper, "other", &socket);
    assert_eq!(other.answer(), "ok");
    other.must(&format!("put theirs 1 {MIB}"));
    assert_eq!(client.stat("theirs").unwrap().uid, 12_345);
    assert_eq!(used(&client, &theirs), (MIB, 1));
    assert_eq!(quota(&client, &theirs).used_clients, 1);
    let over = other.ask(&format!("put more 1 {}", 2 * MIB));
    assert!(over.starts_with("err 122 the quota of uid 12345"), "{over}");
    put(&client, "ours", 2 * MIB, 0).unwrap();
    let denied = other.ask("quota theirs");
    assert!(
        denied.starts_with("err 1 the setting of a quota is for root and uid 0, not for uid 12345"),
        "{denied}"
    );
}

#[test]
fn below_the_low_mark_the_owner_evicts_up_to_the_high_one_and_creates_find_room() {
    let (_owner, _place, socket) = serving_owner(POOL_BYTES);
    let client = Client::connect(&socket).unwrap();
    for (low_bytes, high_bytes) in [(0, MIB), (2 * MIB, MIB), (MIB, 64 * MIB), (MIB, 0)] {
        let odd = refused(client.set_water_marks(WaterMarks { low_bytes, high_bytes }));
        assert!(odd.to_string().starts_with("water marks "), "{odd}");
    }
    let marks = WaterMarks { low_bytes: 4 * MIB, high_bytes: 8 * MIB };
    client.set_water_marks(marks).unwrap();
    let mut held = Vec::new();
    for number in 0..28 {
        put(&client, &format!("{number:02}"), MIB, 1).unwrap();
        if number < 2 {
            held.push(client.get(format!("{number:02}")).unwrap());
        }
    }
    let stat = client.pool_stat().unwrap();
    // What is handed out ahead is free as soon as somebody needs it.
    let free = |stat: &PoolInfo| stat.free_bytes + stat.spare_bytes;
    assert_eq!((stat.nr_evicted, free(&stat)), (0, 4 * MIB), "the low mark is not passed");
    put(&client, "28", MIB, 1).unwrap();
    let stat = wait_until("the owner evicts in advance", || {
        let stat = client.pool_stat().unwrap();
        (free(&stat) == 8 * MIB).then_some(stat)
    });
    assert_eq!(stat.nr_evicted, 5, "and not more than that");
    assert_eq!((stat.evict_low_bytes, stat.evict_high_bytes), (4 * MIB, 8 * MIB));
    let left = names(&client);
    assert_eq!(left[..3], ["00", "01", "07"], "the oldest went, and none that is held");
    drop(held);
    // With nothing to evict it stops; a commit that finds little room has it look again, and where
    // that is still held it looks a second later.
    client.set_water_marks(WaterMarks::default()).unwrap();
    left.iter().for_each(|name| client.unlink(name).unwrap());
    wait_until("all is free", || (free(&client.pool_stat().unwrap()) == POOL_BYTES).then_some(()));
    client.set_water_marks(marks).unwrap();
    put(&client, "kept", 29 * MIB, 0).unwrap();
    put(&client, "x", MIB, 1).unwrap();
    wait_until("the one that may go went", || (names(&client) == ["kept"]).then_some(()));
}

/// Whatever becomes of files in random order, what is used is what the files have.
#[test]
fn what_is_used_is_what_the_files_have_after_any_history() {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(POOL_BYTES)).unwrap()).unwrap();
    let client = owner.client().unwrap();
    let mut random = Random(support::seed());
    let (kv, ab, uid) = (prefix("k"), prefix("ka"), own_uid());
    for of in [&kv, &ab, &uid] {
        client.set_quota(of.clone(), QuotaLimits::new().bytes(12 * MIB).files(20)).unwrap();
    }
    let mut drafts = Vec::new();
    for _ in 0..600 {
        let any = ["ka1", "ka2", "kb1", "kb2", "x1", "x2", "ka3", "kc", "ka"];
        let name = any[random.below(any.len() as u64) as usize];
        let to = any[random.below(any.len() as u64) as usize];
        let len_bytes = random.below(3 * MIB);
        match random.below(8) {
            0 | 1 => drop(put(&client, name, len_bytes, random.below(2) as u8)),
            2 => drop(client.unlink(name)),
            3 => drop(client.truncate(name, len_bytes / 2, Duration::from_millis(100))),
            4 => drop(client.rename(name, to, Replace::Yes)),
            5 => drafts.extend(client.create_owned(name, len_bytes, FolioSize::BestFit)),
            6 => drafts.pop().map_or((), |draft| drop(draft.commit())),
            _ => drop(drafts.pop()),
        }
        drafts.truncate(3);
    }
    drop(drafts);
    let files = client.list().unwrap();
    for of in [&kv, &ab, &uid] {
        let is_its = |name: &[u8]| match of {
            QuotaOf::Prefix(prefix) => name.starts_with(prefix.as_bytes()),
            QuotaOf::Uid(_) => true,
        };
        let its = files.iter().filter(|file| is_its(file.name.as_bytes()));
        let counted =
            its.fold((0, 0), |(bytes, files), it| (bytes + it.allocated_bytes, files + 1));
        wait_until("what is used is counted", || (used(&client, of) == counted).then_some(()));
        assert!(counted.0 <= 12 * MIB, "{counted:?}");
    }
}

/// Story: what the file frees that is replaced was added to the limit, which the refusal then told.
#[test]
fn a_rename_over_a_quota_is_refused_with_the_limit_that_was_set() {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(POOL_BYTES)).unwrap()).unwrap();
    let client = owner.client().unwrap();
    owner.set_quota(prefix("kv/"), QuotaLimits::new().bytes(2 * MIB)).unwrap();
    put(&client, "kv/a", MIB, 1).unwrap();
    assert_eq!(owner.quotas().unwrap(), client.quotas().unwrap());
    put(&client, "large", 4 * MIB, 0).unwrap();
    let over = refused(client.rename("large", "kv/a", Replace::Yes));
    let Refusal::OverQuota { limit, used, wanted, .. } = over else { panic!("{over}") };
    assert_eq!((limit, used, wanted), (2 * MIB, 0, 4 * MIB));
    // What is evicted for it is not counted as replaced once more.
    put(&client, "kv/b", MIB, 0).unwrap();
    drop(client.get("kv/a").unwrap());
    put(&client, "two", 2 * MIB, 0).unwrap();
    let over = refused(client.rename("two", "kv/a", Replace::Yes));
    let Refusal::OverQuota { limit, used, wanted, .. } = over else { panic!("{over}") };
    assert_eq!((limit, used, wanted), (2 * MIB, MIB, 2 * MIB));
    put(&client, "one", MIB, 0).unwrap();
    client.rename("one", "kv/a", Replace::Yes).unwrap();
    owner.remove_quota(&prefix("kv/")).unwrap();
    assert!(client.quotas().unwrap().is_empty());
    put(&client, "may go", MIB, 1).unwrap();
    let marks = WaterMarks { low_bytes: 30 * MIB, high_bytes: 31 * MIB };
    owner.set_water_marks(marks).unwrap();
    wait_until("it went", || (!names(&client).contains(&"may go".into())).then_some(()));
}
