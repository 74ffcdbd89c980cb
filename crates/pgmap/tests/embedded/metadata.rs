//! User metadata and checksums: committed with the file, read without a call, kept over restarts.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgmap::check::CheckOptions;
use pgmap::{
    Checksum, Client, CreateSpec, Error, FolioSize, Owner, Pool, PoolOptions, Refusal, Replace,
    UserMetadata,
};

const MIB: u64 = 1 << 20;

fn spec(name: &str, len_bytes: u64, metadata: &[u8]) -> CreateSpec {
    let spec = CreateSpec::named(name, len_bytes, FolioSize::BestFit).unwrap();
    spec.replacing().metadata(UserMetadata::new(metadata).unwrap()).checksummed()
}

fn put(client: &Client, name: &str, bytes: &[u8], metadata: &[u8]) -> u64 {
    let spec = spec(name, bytes.len() as u64, metadata);
    let mut writer = client.create_batch(vec![spec]).unwrap().pop().unwrap().unwrap();
    writer.write_all_at(0, bytes).unwrap();
    let id = writer.id();
    writer.commit().unwrap();
    id
}

fn sum(bytes: &[u8]) -> u32 {
    let mut sum = Checksum::default();
    sum.update(bytes);
    sum.value()
}

fn metadata(client: &Client, name: &str) -> (Vec<u8>, Option<u32>) {
    let metadata = client.open(name).unwrap().metadata().unwrap();
    assert_eq!(client.stat(name).unwrap().metadata, metadata);
    assert!(client.list().unwrap().iter().any(|info| info.metadata == metadata));
    (metadata.user.as_bytes().to_vec(), metadata.checksum)
}

fn in_directory(path: &Path) -> Owner {
    let pool = match path.exists() {
        true => Pool::open(path),
        false => Pool::create(&PoolOptions::in_directory(path, 16 * MIB)),
    };
    Owner::start(pool.unwrap()).unwrap()
}

#[test]
fn metadata_of_any_length_outlives_the_owner_and_needs_none_to_be_read() {
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = place.path().join("pool");
    let bytes = |len: usize| (0..len).map(|at| (at * 7) as u8).collect::<Vec<u8>>();
    let lengths = [0, 1, 7, 8, 9, 255, 256];
    {
        let owner = in_directory(&path);
        let client = owner.client().unwrap();
        for len in lengths {
            put(&client, &format!("f{len}"), &bytes(len * 100), &bytes(len));
        }
        client.rename("f256", "renamed", Replace::No).unwrap();
        client.rename("renamed", "f256", Replace::No).unwrap();
    }
    let owner = in_directory(&path);
    let client = owner.client().unwrap();
    for len in lengths {
        let expected = (bytes(len), Some(sum(&bytes(len * 100))));
        assert_eq!(metadata(&client, &format!("f{len}")), expected);
    }
    drop(owner);
    // Nobody is there to be asked any more.
    let file = client.open("f255").unwrap();
    assert_eq!(file.metadata().unwrap().user.as_bytes(), bytes(255));
    assert_eq!(
        Some(file.pin_all().unwrap().checksum().unwrap()),
        file.metadata().unwrap().checksum
    );
    assert!(client.stat("f255").is_err());
}

#[test]
fn what_changes_the_contents_takes_the_checksum_and_leaves_the_metadata() {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(16 * MIB)).unwrap()).unwrap();
    let client = owner.client().unwrap();
    let bytes = vec![3; 20_000];
    put(&client, "a", &bytes, b"shape");
    let whole = Some(sum(&bytes));
    client.rename("a", "b", Replace::No).unwrap();
    assert_eq!(metadata(&client, "b"), (b"shape".to_vec(), whole));
    // A truncate that is given up.
    let pin = client.get("b").unwrap();
    assert!(client.truncate("b", 4096, Duration::from_millis(10)).is_err());
    drop(pin);
    assert_eq!(metadata(&client, "b"), (b"shape".to_vec(), whole));
    client.punch("b", 4096..8192, Duration::from_secs(1)).unwrap();
    assert_eq!(metadata(&client, "b"), (b"shape".to_vec(), None));
    put(&client, "b", &bytes, b"");
    assert_eq!(metadata(&client, "b"), (Vec::new(), whole));
    client.truncate("b", 5, Duration::from_secs(1)).unwrap();
    assert_eq!(metadata(&client, "b"), (Vec::new(), None));
    let file = client.open("b").unwrap();
    client.unlink("b").unwrap();
    let stale = file.metadata().unwrap_err();
    assert!(matches!(stale, Error::Refused(Refusal::Stale { .. })), "{stale}");
}

#[test]
fn a_file_that_did_not_ask_has_no_checksum() {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(16 * MIB)).unwrap()).unwrap();
    let client = owner.client().unwrap();
    client.create("plain", 10, FolioSize::BestFit).unwrap().commit().unwrap();
    assert_eq!(metadata(&client, "plain"), (Vec::new(), None));
    put(&client, "empty", b"", b"of nothing");
    assert_eq!(metadata(&client, "empty"), (b"of nothing".to_vec(), Some(0)));
}

/// A name is given to file after file, whose metadata says which one it is: a reader never sees
/// that of another.
#[test]
fn metadata_is_never_another_files() {
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(16 * MIB)).unwrap()).unwrap();
    let writer = owner.client().unwrap();
    let reader = owner.client().unwrap();
    let tagged = |len: usize| vec![len as u8; len];
    put(&writer, "a", &[1; 8], &tagged(1));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..3000_usize {
                let len = 1 + round * 7 % 256;
                put(&writer, "a", &[len as u8; 8], &tagged(len));
                if round % 5 == 0 {
                    writer.rename("a", "b", Replace::Yes).unwrap();
                    writer.rename("b", "a", Replace::Yes).unwrap();
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
        let mut nr_seen = 0;
        while !is_over.load(Ordering::Relaxed) || nr_seen == 0 {
            let Ok(file) = reader.open("a") else { continue };
            let Ok(pin) = file.pin_all() else { continue };
            let Ok(metadata) = file.metadata() else { continue };
            let user = metadata.user.as_bytes();
            assert_eq!(user, tagged(user.len()));
            assert_eq!(pin.to_vec().unwrap(), [user[0]; 8]);
            assert_eq!(metadata.checksum, Some(pin.checksum().unwrap()));
            nr_seen += 1;
        }
        println!("{nr_seen} looks");
    });
}

#[test]
fn a_check_finds_the_byte_that_changed_in_files_with_a_checksum() {
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = place.path().join("pool");
    {
        let owner = in_directory(&path);
        let client = owner.client().unwrap();
        put(&client, "sound", &[1; 70_000], b"");
        put(&client, "changed", &[2; 70_000], b"");
        let plain = client.create("plain", 70_000, FolioSize::BestFit).unwrap();
        plain.commit().unwrap();
    }
    let options = CheckOptions::default().read_data();
    let check = || pgmap::check::check(&path, options, &mut |_, _| {}).unwrap().findings;
    assert_eq!(check(), []);
    let data = File::options().read(true).write(true).open(path.join("data")).unwrap();
    let mut bytes = vec![0; data.metadata().unwrap().len() as usize];
    data.read_exact_at(&mut bytes, 0).unwrap();
    // Its 17th page, the last whole one.
    let page = bytes.chunks(4096).rposition(|page| page.iter().all(|&byte| byte == 2)).unwrap();
    data.write_all_at(&[3], page as u64 * 4096).unwrap();
    let findings = check();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].what.contains("changed"), "{findings:?}");
    let changed = [vec![2; 16 * 4096], vec![3], vec![2; 70_000 - 16 * 4096 - 1]].concat();
    for bytes in [vec![2; 70_000], changed] {
        let shown = format!("{:#010x}", sum(&bytes));
        assert!(findings[0].why.contains(&shown), "{shown}: {findings:?}");
    }
}
