"""Views and pins: what keeps bytes, and what ends."""

import gc
import sys
import weakref

import pytest

import pgmap
from conftest import until


def draining(pool) -> int:
    return pool.info().draining


def test_a_view_outlives_everything_it_can_outlive(tmp_path):
    owner = pgmap.Pool.create("16MiB")
    socket = str(tmp_path / "s")
    owner.serve(socket)
    pool = pgmap.Pool.connect(socket)
    pool.put("block", b"tokens" * 1000)
    pin = pool.get("block")
    view = memoryview(pin)[6:12]
    part = view[1:3]
    del pin
    pool.unlink("block")
    view.release()
    assert draining(owner) > 0, "a part of a view keeps the pin"
    pool.put("block", b"others" * 1000)
    pool.close()
    del pool
    gc.collect()
    assert part == b"ok"
    assert draining(owner) > 0, "a view keeps its client"
    owner.close()
    del owner
    gc.collect()
    assert part == b"ok"


def test_frames_are_free_when_the_last_view_goes(pool):
    pool.put("block", bytes(1 << 20))
    pin = pool.get("block")
    first, second = memoryview(pin), memoryview(pin)
    pool.unlink("block")
    assert pin.is_reclaim_requested
    del pin
    first.release()
    assert draining(pool) == 1 << 20
    second.release()
    until("the frames are free", lambda: draining(pool) == 0)


def test_release_is_refused_while_views_live(pool):
    pool.put("block", b"tokens")
    pin = pool.get("block")
    view = memoryview(pin)
    with pytest.raises(BufferError, match="1 views"):
        pin.release()
    assert view == b"tokens"
    view.release()
    pin.release()
    pin.release()
    for use in (lambda: memoryview(pin), pin.read, lambda: len(pin), lambda: pin.nbytes):
        with pytest.raises(RuntimeError, match="closed"):
            use()
    with pool.get("block") as pin:
        assert pin.read(1, 3) == b"oke"
    assert "released" in repr(pin)


def test_a_pin_is_read_only(pool):
    pool.put("block", b"tokens")
    view = memoryview(pool.get("block"))
    assert view.readonly and view.format == "B" and view.contiguous
    with pytest.raises(TypeError):
        view[0] = 0
    with pytest.raises(BufferError, match="read-only"):
        pool.read_many(["block"], [pool.get("block")])


def test_reading_outside_a_pin_is_an_error(pool):
    pool.put("block", b"tokens")
    pin = pool.get("block")
    assert pin.read(6) == b"" and pin.read(2, 2) == b"ke"
    for offset, nbytes in [(0, 7), (7, 0), (6, 1), (2**64 - 1, 2)]:
        with pytest.raises(pgmap.OutOfRange):
            pin.read(offset, nbytes)


def test_a_file_in_pieces_is_shown_as_a_copy():
    """Every second frame is taken: what is put lies in pieces."""
    with pgmap.Pool.create("1MiB") as pool:
        names = [f"{number:03}" for number in range(256)]
        assert pool.put_many(names, [bytes(4096)] * 256) == [None] * 256
        pool.unlink_many(names[::2])
        data = bytes(range(256)) * 64
        pool.put("whole", data)
        pin = pool.get("whole")
        assert pin.pieces == 4
        assert memoryview(pin) == data == pin.read()
        with pool.writer("written", 16384) as writer:
            writer.write(b"start")
            view = memoryview(writer)
            assert view[:5] == b"start"
            view[5:] = data[5:]
            view.release()
            writer.write(b"begin", 0)
        assert pool.get("written").pieces == 4
        assert pool.get("written").read() == b"begin" + data[5:]


def test_a_writer_publishes_at_its_end_or_not_at_all(pool):
    with pool.writer("block", 8) as writer:
        memoryview(writer)[:] = b"abcdefgh"
        assert "block" not in pool
    assert pool.get("block").read() == b"abcdefgh"
    with pytest.raises(ZeroDivisionError), pool.writer("lost", 8):
        1 / 0
    writer = pool.writer("dropped", 1 << 20)
    assert pool.info().reserved == 1 << 20
    del writer
    until("the frames are free", lambda: pool.info().reserved == 0)
    assert pool.exists_many(["lost", "dropped"]) == [False, False]
    with pool.writer("short", 8) as writer:
        assert writer.write(b"ab") == 2 and writer.write(b"c") == 1
        writer.write(b"g", 6)
    assert pool.get("short").read() == b"abc\0\0\0g\0"
    with pytest.raises(pgmap.OutOfRange), pool.writer("over", 2) as writer:
        writer.write(b"abc")


def test_a_file_is_not_committed_while_it_can_be_written(pool):
    writer = pool.writer("block", 8)
    view = memoryview(writer)
    with pytest.raises(BufferError, match="commit"):
        writer.commit()
    with pytest.raises(BufferError):
        writer.abort()
    view[:] = b"12345678"
    view.release()
    writer.commit()
    assert pool.get("block").read() == b"12345678"
    with pytest.raises(RuntimeError, match="closed"):
        writer.commit()
    with pytest.raises(RuntimeError, match="closed"):
        memoryview(writer)


def test_pins_are_counted_and_leak_nothing(pool):
    pool.put("block", b"tokens")
    pin = pool.get("block")
    before = sys.getrefcount(pin)
    for _ in range(1000):
        memoryview(pin)
    assert sys.getrefcount(pin) == before
    gone = weakref.ref(pin)
    cycle = [memoryview(pin)]
    cycle.append(cycle)
    del pin, cycle
    gc.collect()
    assert gone() is None, "a cycle through a view is collected"
    many = [pool.get("block") for _ in range(5000)]
    assert len(many) == 5000
    pool.unlink("block")
    del many
    until("the frames are free", lambda: draining(pool) == 0)


def test_dlpack_is_read_only_and_keeps_the_pin(pool):
    numpy = pytest.importorskip("numpy")
    pool.put("block", bytes(range(100)))
    array = numpy.from_dlpack(pool.get("block"))
    assert array.dtype == numpy.uint8 and array.shape == (100,) and not array.flags.writeable
    pool.unlink("block")
    gc.collect()
    assert draining(pool) > 0 and array[99] == 99
    del array
    until("the frames are free", lambda: draining(pool) == 0)


def test_dlpack_that_nobody_takes_is_given_back(pool):
    pool.put("block", b"tokens")
    pin = pool.get("block")
    assert pin.__dlpack_device__() == (1, 0)
    capsule = pin.__dlpack__(max_version=(1, 0))
    with pytest.raises(BufferError, match="views"):
        pin.release()
    del capsule
    pin.release()
    pin = pool.get("block")
    with pytest.raises(BufferError, match="1.0"):
        pin.__dlpack__()
    with pytest.raises(BufferError):
        pin.__dlpack__(max_version=(1, 0), dl_device=(2, 0))
    pin.release()
