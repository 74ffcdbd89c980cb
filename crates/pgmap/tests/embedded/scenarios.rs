//! Scenarios of the kernel's rules that need the whole library; docs/parity.md says what Linux
//! does.

use std::time::{Duration, Instant};

use pgmap::mm::fault::Signal;
use pgmap::mm::gup::GupFlags;
use pgmap::mm::mm::Placed;
use pgmap::mm::prot::{Access, Prot};
use pgmap::space::AddressSpace;
use pgmap::{Client, CreateSpec, FileName, FileRules, FolioSize, Owner, Pool, PoolOptions};

const GIB: u64 = 1 << 30;
const EFAULT: i32 = 14;

fn owner(size_bytes: u64) -> Owner {
    Owner::start(Pool::create(&PoolOptions::anonymous(size_bytes)).unwrap()).unwrap()
}

fn put(client: &Client, name: &str, bytes: &[u8], replace: bool) {
    let name = FileName::new(name).unwrap();
    let len_bytes = bytes.len() as u64;
    let (folio_size, rules) = (FolioSize::BestFit, FileRules::default());
    let spec = CreateSpec { replace, rules, ..CreateSpec::new(name, len_bytes, folio_size) };
    let mut writer = client.create_batch(vec![spec]).unwrap().pop().unwrap().unwrap();
    writer.write_all_at(0, bytes).unwrap();
    writer.commit().unwrap();
}

#[test]
fn scenario_23_a_hole_reads_as_zero_and_takes_no_hold() {
    let owner = owner(1 << 20);
    let client = owner.client().unwrap();
    put(&client, "a", &[3; 3 * 4096], false);
    client.punch("a", 4096..8192, Duration::ZERO).unwrap();
    let file = client.open("a").unwrap();
    let pin = file.pin(4096..8192).unwrap();
    assert_eq!(pin.to_vec().unwrap(), [0; 4096]);
    assert_eq!(pin.segments().count(), 0);
    assert_eq!(client.who_all().unwrap().holders, []);
    assert_eq!(file.pin_all().unwrap().segments().count(), 2);
}

#[test]
fn scenario_47_a_hole_reads_as_zero_by_address_and_has_no_page() {
    let owner = owner(1 << 20);
    let client = owner.client().unwrap();
    put(&client, "a", &[3; 8 * 4096], false);
    client.punch("a", 2 * 4096..5 * 4096, Duration::ZERO).unwrap();
    let file = client.open("a").unwrap();
    let device = AddressSpace::for_device(&client, 0, GIB).unwrap();
    let process = AddressSpace::for_process(&client, GIB).unwrap();
    for space in [device, process] {
        let at = space.map(&file, 0, 8 * 4096, Placed::Anywhere, Prot::READ_WRITE).unwrap();
        // From within a page to within a page, across the hole and inside it.
        let mut bytes = [9; 6 * 4096];
        space.read_at(at + 100, &mut bytes).unwrap();
        let expected = |at: usize| if (2..5).contains(&((at + 100) / 4096)) { 0 } else { 3 };
        assert!(bytes.iter().enumerate().all(|(at, &byte)| byte == expected(at)));
        let mut few = [9; 8];
        space.read_at(at + 3 * 4096 + 5, &mut few).unwrap();
        assert_eq!(few, [0; 8]);
        // Whoever wants pages gets what there is instead.
        for flags in [GupFlags::NONE, GupFlags::WRITE, GupFlags::HWPOISON] {
            let error = space.pin(at + 2 * 4096, 1, flags).unwrap_err();
            assert_eq!(error.errno(), EFAULT);
            assert!(error.to_string().contains("hole"), "{error}");
        }
        let fault = space.mm().fault(at + 4 * 4096, Access::Read).unwrap_err();
        assert_eq!(fault.signal(), Signal::Bus, "{fault}");
        let error = space.write_at(at + 4096, &[1; 8192]).unwrap_err();
        assert!(error.to_string().contains("hole"), "{error}");
        space.write_at(at + 4096, &[3; 4096]).unwrap();
        // A hole does not allow what its area does not.
        space.protect(at, 8 * 4096, Prot::NONE).map(drop).unwrap();
        assert_eq!(space.read_at(at + 3 * 4096, &mut few).unwrap_err().errno(), EFAULT);
        // Beyond the end is no hole.
        let at = space.map(&file, 0, 9 * 4096, Placed::Anywhere, Prot::READ).unwrap();
        let error = space.read_at(at + 8 * 4096, &mut few).unwrap_err();
        assert!(error.to_string().contains("the file ends"), "{error}");
    }
}

#[test]
fn scenario_55_new_contents_do_not_wait_for_pins_of_the_old() {
    let owner = owner(1 << 20);
    let client = owner.client().unwrap();
    put(&client, "a", &[1; 8192], false);
    let old = client.get("a").unwrap();
    put(&client, "a", &[2; 8192], true);
    assert_eq!(client.get("a").unwrap().to_vec().unwrap(), [2; 8192]);
    assert_eq!(old.to_vec().unwrap(), [1; 8192], "and the pin keeps what it pinned");
    drop(old);
}

#[test]
fn scenario_56_an_owner_stops_under_pins_at_once_and_they_stay_readable() {
    let owner = owner(1 << 20);
    let client = owner.client().unwrap();
    put(&client, "a", &[5; 8192], false);
    let pin = client.get("a").unwrap();
    let started = Instant::now();
    drop(owner);
    assert!(started.elapsed() < Duration::from_secs(5), "it waits for nobody");
    assert_eq!(pin.to_vec().unwrap(), [5; 8192]);
    assert_eq!(client.get("a").unwrap().to_vec().unwrap(), [5; 8192], "new pins too");
}
