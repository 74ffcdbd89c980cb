//! A pool that evicts, as a cache, beside an exact LRU and beside the best that there is (Belady,
//! "A study of replacement algorithms for a virtual-storage computer", 1966).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pgmap::quota::{QuotaLimits, QuotaOf};
use pgmap::{Client, CreateSpec, Error, FileName, FolioSize, Owner, Pool, PoolOptions, Refusal};

use crate::support::Random;

const NR_PLACES: usize = 512;
const NR_KEYS: u64 = 4096;
const NR_USES: usize = 20_000;

/// Keys as a cache meets them: few often, most seldom.
fn zipf(random: &mut Random) -> Vec<u64> {
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=NR_KEYS)
        .map(|rank| {
            sum += 1.0 / (rank as f64).powf(0.9);
            sum
        })
        .collect();
    let key = |_| {
        let at = (random.next() >> 11) as f64 / (1_u64 << 53) as f64 * sum;
        sums.partition_point(|&sum| sum < at) as u64
    };
    (0..NR_USES).map(key).collect()
}

/// A loop that fits, cut through now and then by a scan of keys that nobody asks for again.
fn scans_and_loops(random: &mut Random) -> Vec<u64> {
    let mut keys = Vec::with_capacity(NR_USES);
    let mut next = NR_KEYS;
    while keys.len() < NR_USES {
        keys.extend((0..3).flat_map(|_| 0..NR_PLACES as u64 * 3 / 4));
        let nr_scanned = random.below(NR_PLACES as u64 / 2);
        keys.extend(next..next + nr_scanned);
        next += nr_scanned;
    }
    keys
}

/// Hits of a cache that takes out what was used longest ago.
fn lru(keys: &[u64]) -> usize {
    let (mut used, mut order) = (HashMap::new(), BTreeMap::new());
    let mut nr_hits = 0;
    for (now, &key) in keys.iter().enumerate() {
        if let Some(last) = used.insert(key, now) {
            nr_hits += 1;
            order.remove(&last);
        } else if order.len() == NR_PLACES {
            let (_, oldest) = order.pop_first().unwrap();
            used.remove(&oldest);
        }
        order.insert(now, key);
    }
    nr_hits
}

/// Hits of a cache that takes out what is used again last.
fn belady(keys: &[u64]) -> usize {
    let mut next_use = vec![usize::MAX; keys.len()];
    let mut seen = HashMap::new();
    for (at, &key) in keys.iter().enumerate().rev() {
        next_use[at] = seen.insert(key, at).unwrap_or(usize::MAX);
    }
    let (mut next_of, mut order) = (HashMap::new(), BTreeSet::new());
    let mut nr_hits = 0;
    for (&key, &next) in keys.iter().zip(&next_use) {
        if let Some(before) = next_of.insert(key, next) {
            nr_hits += 1;
            order.remove(&(before, key));
        } else if order.len() == NR_PLACES {
            let (_, last) = order.pop_last().unwrap();
            next_of.remove(&last);
        }
        order.insert((next, key));
    }
    nr_hits
}

/// Hits of a pool with room for so many files, each of which is put when it is missed.
fn pool(keys: &[u64]) -> usize {
    let options = PoolOptions::anonymous(NR_PLACES as u64 * 4096).max_files(2 * NR_PLACES as u64);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    hits(&owner.client().unwrap(), keys)
}

/// Hits of a pool with room for all, in which a quota gives these files so many places. Files of
/// others, which nobody uses, all stay.
fn quota(keys: &[u64]) -> usize {
    const NR_OTHERS: u64 = 100;
    let options = PoolOptions::anonymous((2 * NR_KEYS + NR_OTHERS) * 4096).max_files(4 * NR_KEYS);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let client = owner.client().unwrap();
    for number in 0..NR_OTHERS {
        put(&client, &format!("other{number}"), number);
    }
    let of = QuotaOf::Prefix(FileName::new("key").unwrap());
    client.set_quota(of, QuotaLimits::new().files(NR_PLACES as u64)).unwrap();
    let nr_hits = hits(&client, keys);
    assert_eq!(client.list_prefix("other").unwrap().len() as u64, NR_OTHERS);
    assert_eq!(client.list_prefix("key").unwrap().len(), NR_PLACES);
    nr_hits
}

fn put(client: &Client, name: &str, key: u64) {
    let name = FileName::new(name).unwrap();
    let spec = CreateSpec::new(name, 4096, FolioSize::Pages4K).evictable(1);
    client.put_batch(vec![(spec, &key.to_le_bytes()[..])]).unwrap().remove(0).unwrap();
}

fn hits(client: &Client, keys: &[u64]) -> usize {
    let mut nr_hits = 0;
    for key in keys {
        let name = format!("key{key}");
        match client.get(&name) {
            Ok(_pin) => nr_hits += 1,
            Err(Error::Refused(Refusal::NotFound { .. })) => put(client, &name, *key),
            Err(error) => panic!("{error}"),
        }
    }
    nr_hits
}

#[test]
fn a_pool_that_evicts_hits_as_often_as_an_exact_lru_and_so_does_a_quota() {
    let mut random = Random(3);
    for (what, keys) in
        [("zipf", zipf(&mut random)), ("scans and loops", scans_and_loops(&mut random))]
    {
        let percent = |nr_hits: usize| nr_hits as f64 / keys.len() as f64 * 100.0;
        let (pool, lru, best) = (percent(pool(&keys)), percent(lru(&keys)), percent(belady(&keys)));
        let quota = percent(quota(&keys));
        println!(
            "{what}: hits {pool:.2} %, under a quota {quota:.2} %, exact LRU {lru:.2} %, Belady \
             {best:.2} %"
        );
        for hits in [pool, quota] {
            assert!((hits - lru).abs() <= 1.0, "{what}: {hits:.2} % beside {lru:.2} %");
        }
        assert!(lru < best, "{what}: the model is wrong");
    }
}
