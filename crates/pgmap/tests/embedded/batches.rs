//! Batches of any size: each item has its answer, however many messages it takes.

use crate::support;
use pgmap::{Client, CreateSpec, Error, FileName, FolioSize, Owner, Pool, PoolOptions, Refusal};

const MIB: u64 = 1 << 20;
/// Enough for several messages, by number and by length.
const NR_FILES: usize = 1000;

/// As long as a name can be.
fn name(number: usize) -> String {
    format!("{number:0255}")
}

fn file_name(number: usize) -> FileName {
    FileName::new(name(number)).unwrap()
}

fn spec(number: usize, len_bytes: u64) -> CreateSpec {
    CreateSpec::new(file_name(number), len_bytes, FolioSize::BestFit)
}

/// A client whose calls are messages.
fn remote() -> (tempfile::TempDir, Owner, Client) {
    let directory = support::roomy();
    let owner =
        Owner::start(Pool::create(&PoolOptions::anonymous(32 * MIB).max_files(20_000)).unwrap())
            .unwrap();
    let socket = directory.path().join("s");
    owner.serve(&socket).unwrap();
    let client = Client::connect(&socket).unwrap();
    (directory, owner, client)
}

fn content(number: usize) -> Vec<u8> {
    support::block::make(number as u64, 100 + number % 50)
}

#[test]
fn a_batch_of_a_thousand_long_names_is_done_whole() {
    let (_directory, _owner, client) = remote();
    client.create(name(700), 0, FolioSize::BestFit).unwrap().commit().unwrap();
    let contents: Vec<_> = (0..NR_FILES).map(content).collect();
    let files = contents.iter().enumerate();
    let files = files.map(|(number, bytes)| (spec(number, bytes.len() as u64), &bytes[..]));
    let answers = client.put_batch(files.collect()).unwrap();
    assert_eq!(answers.len(), NR_FILES);
    for (number, answer) in answers.into_iter().enumerate() {
        match answer {
            Err(Error::Refused(Refusal::Exists { .. })) => assert_eq!(number, 700),
            answer => {
                answer.unwrap();
                assert_ne!(number, 700, "that name is taken");
            }
        }
    }
    let names: Vec<_> = (0..NR_FILES + 5).map(name).collect();
    assert_eq!(client.exists_prefix(&names).unwrap(), NR_FILES);
    assert_eq!(client.exists_prefix(&names[NR_FILES..]).unwrap(), 0);
    assert!(client.exists(name(1)).unwrap() && !client.exists("").unwrap());
    let mut buffers = vec![[0_u8; 120]; NR_FILES + 5];
    let mut reads: Vec<_> = names.iter().zip(buffers.iter_mut().map(|b| &mut b[..])).collect();
    let lengths = client.read_batch(&mut reads);
    for (number, length) in lengths.into_iter().enumerate() {
        match length {
            Ok(0) => assert_eq!(number, 700),
            Ok(length) => {
                let expected = content(number);
                assert_eq!(length, expected.len() as u64, "whole, whatever the buffer takes");
                let both = expected.len().min(120);
                assert_eq!(buffers[number][..both], expected[..both]);
            }
            Err(error) => assert!(number >= NR_FILES, "{error}"),
        }
    }
    let pins = client.get_batch(&names);
    assert_eq!(pins.iter().filter(|pin| pin.is_ok()).count(), NR_FILES);
    drop(pins);
    let answers =
        client.unlink_batch(&(5..NR_FILES + 5).map(file_name).collect::<Vec<_>>()).unwrap();
    let nr_refused = answers.iter().filter(|answer| answer.is_err()).count();
    assert_eq!((answers.len(), nr_refused), (NR_FILES, 5));
    assert_eq!(client.exists_prefix(&names).unwrap(), 5);
}

#[test]
fn writers_of_a_large_batch_are_committed_in_their_order() {
    let (_directory, _owner, client) = remote();
    let specs = (0..NR_FILES).map(|number| spec(number, 8)).collect();
    let mut writers = Vec::new();
    for (number, writer) in client.create_batch(specs).unwrap().into_iter().enumerate() {
        let mut writer = writer.unwrap();
        writer.write_all_at(0, &number.to_le_bytes()).unwrap();
        writers.push(writer);
    }
    client.create(name(300), 0, FolioSize::BestFit).unwrap().commit().unwrap();
    for (number, answer) in client.commit_batch(writers).unwrap().into_iter().enumerate() {
        assert_eq!(answer.is_err(), number == 300, "{number}: {answer:?}");
    }
    let last = client.get(name(NR_FILES - 1)).unwrap().to_vec().unwrap();
    assert_eq!(last, (NR_FILES - 1).to_le_bytes());
}

#[test]
fn files_in_many_pieces_are_created_although_one_answer_cannot_name_them_all() {
    let (_directory, _owner, client) = remote();
    // Every second frame of the pool is taken.
    let fill = (0..8192).map(|number| spec(number, 4096)).collect();
    let writers = client.create_batch(fill).unwrap().into_iter().map(Result::unwrap).collect();
    client.commit_batch(writers).unwrap().into_iter().for_each(Result::unwrap);
    let every_second: Vec<_> = (0..4096).map(|number| file_name(2 * number)).collect();
    client.unlink_batch(&every_second).unwrap().into_iter().for_each(Result::unwrap);
    let specs = (10_000..10_200).map(|number| spec(number, 16 * 4096)).collect();
    let writers: Vec<_> = client.create_batch(specs).unwrap().into_iter().collect();
    let nr_extents: usize =
        writers.into_iter().map(|writer| writer.unwrap().segments().len()).sum();
    assert!(nr_extents > pgmap::wire::MAX_REPLY_EXTENTS, "{nr_extents} fit into one answer");
}

#[test]
fn a_listing_by_prefix_names_those_files_only() {
    let (_directory, _owner, client) = remote();
    let names = ["a", "b", "b/", "b/1", "b0", "c"].map(String::from);
    let many = (0..250).map(|number| format!("b/x{number:03}"));
    let specs = names.into_iter().chain(many).map(|name| {
        let spec = CreateSpec::new(FileName::new(name).unwrap(), 0, FolioSize::BestFit);
        (spec, &b""[..])
    });
    client.put_batch(specs.collect()).unwrap().into_iter().for_each(Result::unwrap);
    let listed = |prefix: &str| -> Vec<String> {
        let files = client.list_prefix(prefix).unwrap();
        files.into_iter().map(|file| file.name.to_string()).collect()
    };
    let below = listed("b/");
    assert_eq!(below.len(), 252);
    assert_eq!((&below[0][..], &below[1][..], &below[251][..]), ("b/", "b/1", "b/x249"));
    assert_eq!(listed("b/x24").len(), 10);
    assert_eq!(listed("c"), ["c"]);
    assert_eq!(
        listed(""),
        client.list().unwrap().iter().map(|f| f.name.to_string()).collect::<Vec<_>>()
    );
    assert!(listed("d").is_empty() && listed("b/1/").is_empty());
}
