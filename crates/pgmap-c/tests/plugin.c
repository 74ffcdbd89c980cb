// What a storage plugin does: run with the owner's socket.

#include <errno.h>
#include <poll.h>

#include "program.h"

static struct pgmap_pool *pool;

static void errors_say_what_they_are(void) {
    struct pgmap_pin *pin;
    CHECK(pgmap_get(pool, "nothing", 7, &pin) == -ENOENT);
    CHECK(SAYS("nothing"));
    CHECK(pgmap_get(pool, NULL, 7, &pin) == -EINVAL);
    CHECK(SAYS("name"));
    CHECK(pgmap_get(NULL, "a", 1, &pin) == -EINVAL);
    CHECK(pgmap_get(pool, "from/rust", 9, NULL) == -EINVAL);
    CHECK(pgmap_unlink(pool, "nothing", 7) == -ENOENT);
    struct pgmap_writer *writer;
    CHECK(pgmap_create(pool, "from/rust", 9, 4, 64, &writer) == -EINVAL);
    CHECK(SAYS("0x40"));
    CHECK(pgmap_create(pool, "huge", 4, 1ull << 40, 0, &writer) < 0);
    CHECK(pgmap_commit(NULL) == -EINVAL);
    struct pgmap_pool *other;
    CHECK(pgmap_connect("/nothing/there", NULL, 100, &other) < 0);
    CHECK(pgmap_connect(NULL, NULL, 0, &other) == -EINVAL);
    CHECK(pgmap_connect_with("/nothing/there", NULL, 0, 64, &other) == -EINVAL);
    CHECK(SAYS("0x40"));
    CHECK(!pgmap_is_read_only(pool) && !pgmap_is_read_only(NULL));
    pgmap_disconnect(NULL);
    pgmap_abort(NULL);
    pgmap_unpin(NULL);
    pgmap_unsubscribe(NULL);
}

static void a_pin_outlives_its_name(void) {
    char bytes[8] = {0};
    put(pool, "a", "first", PGMAP_CHECKSUM);
    struct pgmap_writer *writer;
    CHECK(pgmap_create(pool, "a", 1, 4, 0, &writer) == -EEXIST);
    struct pgmap_pin *pin;
    CHECK(pgmap_get(pool, "a", 1, &pin) == 0);
    CHECK(pgmap_pin_len(pin) == 5 && !pgmap_is_reclaim_requested(pin));
    put(pool, "a", "second", PGMAP_REPLACE);
    CHECK(pgmap_read(pin, 0, bytes, 5) == 0 && memcmp(bytes, "first", 5) == 0);
    CHECK(pgmap_read(pin, 3, bytes, 3) < 0);

    struct pgmap_segment segment;
    size_t count = 0;
    CHECK(pgmap_pin_segments(pin, NULL, 0, &count) == 0 && count == 1);
    CHECK(pgmap_pin_segments(pin, &segment, 1, &count) == 0);
    CHECK(segment.len_bytes == 5 && segment.file_offset == 0);
    CHECK(memcmp(segment.address, "first", 5) == 0);
    void *memory;
    uint64_t len_bytes;
    CHECK(pgmap_memory(pool, &memory, &len_bytes) == 0 && len_bytes >= 16 << 20);
    CHECK((char *)memory + segment.pool_offset == segment.address);
    pgmap_unpin(pin);

    CHECK(pgmap_get_for_device(pool, "a", 1, &pin) == 0);
    CHECK(pgmap_read(pin, 0, bytes, 6) == 0 && memcmp(bytes, "second", 6) == 0);
    pgmap_unpin(pin);
}

static void a_file_is_filled_in_place(void) {
    struct pgmap_writer *writer;
    struct pgmap_segment segments[4];
    size_t count;
    CHECK(pgmap_create(pool, "draft", 5, 6, 0, &writer) == 0);
    CHECK(pgmap_exists(pool, "draft", 5) == 0);
    CHECK(pgmap_writer_segments(writer, segments, 4, &count) == 0 && count == 1);
    CHECK(pgmap_set_device(writer, true) == 0);
    memcpy(segments[0].address, "tokens", 6);
    CHECK(pgmap_set_device(writer, false) == 0);
    CHECK(pgmap_commit(writer) == 0 && pgmap_exists(pool, "draft", 5) == 1);
    CHECK(pgmap_rename(pool, "draft", 5, "from/c", 6, 0) == 0);
    CHECK(pgmap_exists(pool, "draft", 5) == 0 && pgmap_exists(pool, "from/c", 6) == 1);

    CHECK(pgmap_create(pool, "given up", 8, 6, 0, &writer) == 0);
    pgmap_abort(writer);
    CHECK(pgmap_exists(pool, "given up", 8) == 0);
}

static void events_come_in_order(void) {
    struct pgmap_events *events;
    struct pgmap_event event;
    CHECK(pgmap_subscribe(pool, "e/", 2, &events) == 0);
    CHECK(pgmap_events_next(events, 0, &event) == 0);
    put(pool, "e/1", "x", 0);
    put(pool, "other", "x", PGMAP_EVICTABLE);
    CHECK(pgmap_unlink(pool, "e/1", 3) == 0);
    struct pollfd ready = {pgmap_events_fd(events), POLLIN, 0};
    CHECK(poll(&ready, 1, 10000) == 1);
    uint32_t expected[] = {PGMAP_CREATED, PGMAP_REMOVED, PGMAP_DRAINED};
    for (size_t nth = 0; nth < 3; nth++) {
        CHECK(pgmap_events_next(events, 10000, &event) == 1);
        CHECK(event.change == expected[nth] && event.sequence == nth + 1);
        CHECK(event.nr_missed == 0 && event.len_bytes == 1);
        CHECK(event.name_len == 3 && strcmp((const char *)event.name, "e/1") == 0);
    }
    CHECK(pgmap_events_next(events, 0, &event) == 0);
    pgmap_unsubscribe(events);
}

int main(int argc, char **argv) {
    CHECK(argc == 2 && strlen(pgmap_version()) > 0);
    CHECK(pgmap_connect(argv[1], "plugin", 5000, &pool) == 0);
    errors_say_what_they_are();
    a_pin_outlives_its_name();
    a_file_is_filled_in_place();
    events_come_in_order();

    struct pgmap_pin *last;
    CHECK(pgmap_get(pool, "from/rust", 9, &last) == 0);
    pgmap_disconnect(pool);
    CHECK(pgmap_pin_len(last) == 5);
    pgmap_unpin(last);
    puts("all good");
    return 0;
}
