"""What is done with files by name."""

import array
import pickle
import threading

import pytest

import pgmap


def test_what_is_put_is_got_from_anything_with_a_buffer(pool):
    for number, data in enumerate([b"bytes", bytearray(b"more"), memoryview(b"xviewx")[1:-1]]):
        pool.put(f"file/{number}", data)
        pin = pool.get(f"file/{number}")
        assert memoryview(pin) == data and len(pin) == pin.nbytes == len(data)
    numbers = array.array("d", [1.5, 2.5])
    pool.put("floats", numbers)
    assert pool.get("floats").read() == numbers.tobytes()
    address, count = numbers.buffer_info()
    pool.put("address", (address, count * 8))
    assert pool.get("address").read() == numbers.tobytes()
    with pytest.raises(BufferError):
        pool.put("strided", memoryview(b"abcdef")[::2])
    with pytest.raises(TypeError, match="nbytes"):
        pool.put("tuple", ("a", "b"))
    assert pool.exists_many(["strided", "tuple"]) == [False, False]


def test_an_empty_file_is_a_file(pool):
    pool.put("empty", b"")
    assert bytes(memoryview(pool.get("empty"))) == b"" == pool.get("empty").read()
    assert pool.stat("empty").nbytes == 0


def test_names_are_text_or_bytes(pool):
    pool.put("grüße", b"1")
    assert pool.get("grüße".encode()).read() == b"1"
    pool.put(b"\xff\xfe", b"2")
    [odd] = [file.name for file in pool.list() if file.name != "grüße"]
    assert pool.get(odd).read() == b"2", "a listing's name names the file"
    for bad in ["", "a\0b", "x" * 256]:
        with pytest.raises(pgmap.BadName) as raised:
            pool.put(bad, b"")
        assert raised.value.kind == "bad_name" and raised.value.errno > 0
    with pytest.raises(TypeError, match="int"):
        pool.get(7)


def test_errors_say_what_they_are(pool):
    with pytest.raises(pgmap.NotFound, match='no file "nothing"') as raised:
        pool.get("nothing")
    assert isinstance(raised.value, (pgmap.Error, KeyError))
    assert (raised.value.kind, raised.value.errno) == ("not_found", 2)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)
    pool.put("a", b"first")
    with pytest.raises(pgmap.Exists):
        pool.put("a", b"second")
    assert pool.get("a").read() == b"first"
    pool.put("a", b"second", replace=True)
    assert pool.get("a").read() == b"second"
    with pytest.raises(pgmap.Error, match="whole pool") as raised:
        pool.writer("big", 1 << 30)
    assert raised.value.kind == "bad_length"
    pool.put("b", bytes(40 << 20))
    with pytest.raises(pgmap.NoSpace, match="free"):
        pool.writer("c", 40 << 20)
    assert pool.info().files == 2, "nothing was lost or left"


def test_sizes_are_numbers_or_text():
    for size in [1 << 20, "1MiB", "1M", " 1 mib ", "1024K"]:
        with pgmap.Pool.create(size) as pool:
            assert pool.info().size == 1 << 20
    for bad in ["", "1MB", "x", "1.5G", "-1", "99999999999G"]:
        with pytest.raises(ValueError, match="size"):
            pgmap.Pool.create(bad)
    with pytest.raises(TypeError):
        pgmap.Pool.create(1.5)


def test_batches_of_any_size(pool):
    names = [f"block/{number:0240}" for number in range(1000)]
    datas = [name.encode()[: 200 + number % 50] for number, name in enumerate(names)]
    pool.put(names[3], b"taken")
    raised = pool.put_many(names, datas)
    assert [at for at, error in enumerate(raised) if error is not None] == [3]
    assert isinstance(raised[3], pgmap.Exists)
    assert pool.exists_prefix([*names, "nothing", *names]) == 1000
    assert pool.exists_prefix(["nothing", *names]) == 0
    pins = pool.get_many([*names, "nothing"])
    assert pins[-1] is None
    assert [pin.read() for at, pin in enumerate(pins[:-1]) if at != 3] == datas[:3] + datas[4:]
    targets = [bytearray(210) for _ in names]
    lengths = pool.read_many([*names, "nothing"], [*targets, bytearray(1)])
    assert lengths[-1] is None and lengths[3] == 5
    assert lengths[:3] == [len(data) for data in datas[:3]], "whole, whatever the target takes"
    assert targets[20][: lengths[20]] == datas[20][:210]
    assert pool.unlink_many([*names[:10], "nothing"]) == [True] * 10 + [False]
    assert pool.exists_many(names[8:12]) == [False, False, True, True]
    with pytest.raises(ValueError, match="1 names and 0 datas"):
        pool.put_many(["a"], [])
    with pytest.raises((BufferError, TypeError)):
        pool.read_many(names[20:21], [b"read-only"])


def test_listing_stat_and_rename(pool):
    pool.put_many(["a/1", "a/2", "b"], [b"1", b"22", b"333"])
    assert [(file.name, file.nbytes) for file in pool.list("a/")] == [("a/1", 1), ("a/2", 2)]
    assert len(pool.list()) == 3 and pool.list("c") == []
    pool.rename("b", "c")
    assert "c" in pool and "b" not in pool and pool.stat("c").nbytes == 3
    with pytest.raises(pgmap.Exists):
        pool.rename("c", "a/1")
    pool.rename("c", "a/1", replace=True)
    assert pool.get("a/1").read() == b"333"


def test_a_pool_in_a_directory_is_found_again(tmp_path):
    place = tmp_path / "pool"
    with pgmap.Pool.create("16MiB", directory=place) as pool:
        pool.put("a", b"kept")
        with pytest.raises(pgmap.Error):
            pgmap.Pool.create("16MiB", directory=place)
    with pgmap.Pool.create("16MiB", directory=place) as pool:
        assert pool.get("a").read() == b"kept"


def test_a_closed_pool_says_so_and_its_pins_stay_valid():
    pool = pgmap.Pool.create("1MiB")
    pool.put("a", b"still here")
    pin = pool.get("a")
    view = memoryview(pin)
    pool.close()
    pool.close()
    for call in (lambda: pool.get("a"), lambda: pool.put("b", b""), pool.info):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    assert view == b"still here"


def test_a_call_does_not_keep_other_threads_waiting(pool):
    """A copy of 32 MiB gives the interpreter's lock up: another thread runs meanwhile."""
    data = bytearray(32 << 20)
    is_running, counted = True, 0

    def count():
        nonlocal counted
        while is_running:
            counted += 1

    thread = threading.Thread(target=count)
    thread.start()
    start = counted
    pool.put("big", data)
    gained = counted - start
    is_running = False
    thread.join()
    assert gained > 1000, f"{gained} turns of the other thread during a copy of 32 MiB"


def test_a_prefault_says_how_far_it_is_and_ends_when_it_is_told_to(pool):
    pool.put("file", bytes(1 << 20))
    seen = []
    done, total = pool.prefault(progress=lambda done, total: seen.append((done, total)))
    assert done == total == pool.info().size and seen[-1][0] <= total
    pool.put("more", bytes(20 << 20))
    done, total = pool.prefault(progress=lambda done, total: False)
    assert done < total
    assert pool.prefault(deadline=0)[0] == 0
    with pytest.raises(ZeroDivisionError):
        pool.prefault(progress=lambda done, total: 1 // 0)
