// What an operator does: quotas and water marks. Run with the socket of the owner of a pool of
// 16 MiB, which has no other client.

#include <errno.h>
#include <unistd.h>

#include "program.h"

#define MIB ((uint64_t)1 << 20)

static struct pgmap_pool *pool;

// Reserves a file and commits it as it is; what the create says.
static int make(const char *name, uint64_t len_bytes, uint32_t flags) {
    struct pgmap_writer *writer;
    int made = pgmap_create(pool, name, strlen(name), len_bytes, flags, &writer);
    if (made == 0)
        CHECK(pgmap_commit(writer) == 0);
    return made;
}

static void gone(const char *name) { CHECK(pgmap_unlink(pool, name, strlen(name)) == 0); }

static void what_cannot_be_is_an_error(void) {
    uint64_t none = PGMAP_NO_LIMIT, low, high;
    size_t count;
    CHECK(pgmap_set_uid_quota(NULL, 1, 1, 1, 1) == -EINVAL && SAYS("the pool is null"));
    CHECK(pgmap_set_uid_quota(pool, 1, none, none, none) == -EINVAL && SAYS("limits nothing"));
    CHECK(pgmap_set_prefix_quota(pool, "kv/", 3, none, none) == -EINVAL);
    CHECK(pgmap_set_prefix_quota(pool, "kv/", 0, 1, none) == -EINVAL);
    CHECK(pgmap_set_prefix_quota(pool, NULL, 3, 1, none) == -EINVAL && SAYS("the prefix"));
    CHECK(pgmap_remove_uid_quota(pool, 4321) == -EINVAL && SAYS("no quota of uid 4321"));
    CHECK(pgmap_remove_prefix_quota(pool, "kv/", 3) == -EINVAL && SAYS("no quota of prefix"));
    CHECK(pgmap_set_water_marks(pool, 8 * MIB, 4 * MIB) == -EINVAL && SAYS("water marks"));
    CHECK(pgmap_set_water_marks(pool, 8 * MIB, 1024 * MIB) == -EINVAL);
    CHECK(pgmap_water_marks(pool, &low, NULL) == -EINVAL);
    CHECK(pgmap_quotas(pool, NULL, 1, &count) == -EINVAL);
    CHECK(pgmap_quotas(pool, NULL, 0, NULL) == -EINVAL);
    CHECK(pgmap_quotas(pool, NULL, 0, &count) == 0 && count == 0);
    CHECK(pgmap_water_marks(pool, &low, &high) == 0 && low == 0 && high == 0);
}

static void a_prefix_has_what_its_quota_says(void) {
    CHECK(pgmap_set_prefix_quota(pool, "kv/", 3, MIB, 2) == 0);
    CHECK(make("kv/a", 65536, 0) == 0);
    CHECK(make("kv/b", MIB, 0) == -EDQUOT);
    CHECK(SAYS("the quota of prefix \"kv/\" is 1048576 bytes"));
    CHECK(SAYS("65536 are used, and 1048576 more wanted"));
    CHECK(make("other", MIB, 0) == 0);
    CHECK(pgmap_rename(pool, "other", 5, "kv/b", 4, 0) == -EDQUOT);
    CHECK(make("kv/b", 4096, PGMAP_EVICTABLE) == 0);

    struct pgmap_quota quota;
    size_t count;
    CHECK(pgmap_quotas(pool, &quota, 1, &count) == 0 && count == 1);
    CHECK(quota.prefix_len == 3 && strcmp((const char *)quota.prefix, "kv/") == 0);
    CHECK(quota.uid == 0 && quota.max_bytes == MIB && quota.max_files == 2);
    CHECK(quota.max_clients == PGMAP_NO_LIMIT && quota.used_clients == 0);
    CHECK(quota.used_bytes == 65536 + 4096 && quota.used_files == 2);

    // What may go makes room, then nothing is left that may.
    CHECK(make("kv/c", 4096, 0) == 0 && pgmap_exists(pool, "kv/b", 4) == 0);
    CHECK(make("kv/d", 4096, 0) == -EDQUOT);
    CHECK(SAYS("the quota of prefix \"kv/\" is 2 files: 2 are used, and 1 more wanted"));

    // Another one takes its place, and zero is a limit.
    CHECK(pgmap_set_prefix_quota(pool, "kv/", 3, PGMAP_NO_LIMIT, 0) == 0);
    CHECK(make("kv/d", 4096, 0) == -EDQUOT && SAYS("is 0 files"));
    CHECK(pgmap_remove_prefix_quota(pool, "kv/", 3) == 0);
    CHECK(make("kv/d", MIB, 0) == 0);
    gone("kv/a"), gone("kv/c"), gone("kv/d"), gone("other");
}

static void a_user_has_what_its_quota_says(const char *socket) {
    uint64_t none = PGMAP_NO_LIMIT;
    uint32_t uid = getuid();
    CHECK(make("u/1", 4096, 0) == 0);
    CHECK(pgmap_set_uid_quota(pool, uid, none, 1, 1) == 0);
    CHECK(make("u/2", 4096, 0) == -EDQUOT && SAYS("is 1 files: 1 are used"));
    struct pgmap_pool *second;
    CHECK(pgmap_connect(socket, "second", 0, &second) == -EDQUOT);
    CHECK(SAYS("is 1 clients: 1 are used, and 1 more wanted"));

    // Users come first; what there is no room for is counted.
    CHECK(pgmap_set_prefix_quota(pool, "u/", 2, 2 * MIB, none) == 0);
    CHECK(pgmap_set_uid_quota(pool, uid + 1, 3 * MIB, none, none) == 0);
    struct pgmap_quota quotas[PGMAP_MAX_QUOTAS];
    size_t count;
    CHECK(pgmap_quotas(pool, quotas, 1, &count) == 0 && count == 3);
    CHECK(pgmap_quotas(pool, quotas, PGMAP_MAX_QUOTAS, &count) == 0 && count == 3);
    CHECK(quotas[0].uid == uid && quotas[0].prefix_len == 0 && quotas[0].max_bytes == none);
    CHECK(quotas[0].max_files == 1 && quotas[0].max_clients == 1);
    CHECK(quotas[0].used_files == 1 && quotas[0].used_clients == 1);
    CHECK(quotas[1].uid == uid + 1 && quotas[1].max_bytes == 3 * MIB);
    CHECK(quotas[1].used_bytes == 0 && quotas[1].used_files == 0);
    CHECK(quotas[2].prefix_len == 2 && quotas[2].used_bytes == 4096);

    CHECK(pgmap_remove_uid_quota(pool, uid) == 0);
    CHECK(pgmap_remove_prefix_quota(pool, "u/", 2) == 0);
    CHECK(pgmap_connect(socket, "second", 0, &second) == 0);
    pgmap_disconnect(second);
    CHECK(make("u/2", 4096, 0) == 0);
    gone("u/1"), gone("u/2");
}

static void room_is_made_in_advance(void) {
    struct pgmap_events *events;
    struct pgmap_event event;
    uint64_t low, high;
    CHECK(pgmap_subscribe(pool, "w/", 2, &events) == 0);
    CHECK(pgmap_set_water_marks(pool, 4 * MIB, 8 * MIB) == 0);
    CHECK(pgmap_water_marks(pool, &low, &high) == 0 && low == 4 * MIB && high == 8 * MIB);
    // 3 MiB are free after the last, which is less than the low mark, and not too little for it.
    for (char nth = 'a'; nth < 'a' + 13; nth++) {
        char name[] = {'w', '/', nth, 0};
        CHECK(make(name, MIB, PGMAP_EVICTABLE) == 0);
    }
    do
        CHECK(pgmap_events_next(events, 10000, &event) == 1);
    while (event.change != PGMAP_EVICTED);
    CHECK(strcmp((const char *)event.name, "w/a") == 0);
    pgmap_unsubscribe(events);
    CHECK(pgmap_set_water_marks(pool, 0, 0) == 0);
    CHECK(pgmap_water_marks(pool, &low, &high) == 0 && low == 0 && high == 0);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    CHECK(pgmap_connect(argv[1], "operator", 0, &pool) == 0);
    what_cannot_be_is_an_error();
    a_prefix_has_what_its_quota_says();
    a_user_has_what_its_quota_says(argv[1]);
    room_is_made_in_advance();
    CHECK(pgmap_set_water_marks(pool, MIB, 2 * MIB) == 0);
    pgmap_disconnect(pool);
    puts("all good");
    return 0;
}
