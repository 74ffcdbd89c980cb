// pgmap for C: blocks in one memory pool of all the processes of a machine. A block cannot be
// reused while anything still reads it, and a killed process gives everything back at once.
//
// Written by cbindgen from crates/pgmap-c. MIT OR Apache-2.0.
//
// Calls return 0, or a negative number of errno.h; pgmap_last_error() says more. Names are bytes
// without NUL, 1 to 255 of them, given with their length. Any thread may use a pool, and two
// threads may use two objects at once; one writer, pin or subscription is used by one thread at a
// time.
// After a fork the child connects itself.

#ifndef PGMAP_H
#define PGMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// The new file takes the place of one that has its name.
#define PGMAP_REPLACE 1

// The new file gets a CRC-32C of its contents.
#define PGMAP_CHECKSUM 2

// The owner may evict the new file when others need room and nobody holds it.
#define PGMAP_EVICTABLE 4

// The process reads and changes nothing.
#define PGMAP_READ_ONLY 8

// A file was committed under the name, or got it by a rename.
#define PGMAP_CREATED 1

// The name was taken away: unlinked, replaced, or given up for another.
#define PGMAP_REMOVED 2

// The owner removed the file to make room.
#define PGMAP_EVICTED 3

// A file was removed or evicted, and nobody holds any of its memory now.
#define PGMAP_DRAINED 4

// Stands for no limit. Zero is a limit: it allows nothing.
#define PGMAP_NO_LIMIT UINT64_MAX

// Most quotas of a pool.
#define PGMAP_MAX_QUOTAS 128

// A subscription to what becomes of files.
struct pgmap_events;

// A file's bytes, pinned: they are this file's and are given to nobody else until `pgmap_unpin`,
// whether the file is unlinked, its owner ends or the pool is disconnected.
struct pgmap_pin;

// A pool that this process is connected to.
struct pgmap_pool;

// A file that nobody else sees before it is committed.
struct pgmap_writer;

// A run of a file's bytes in memory.
struct pgmap_segment {
  // The first byte.
  void *address;
  // Length in bytes.
  uint64_t len_bytes;
  // Where it lies in the pool's memory (`pgmap_memory`), in bytes.
  uint64_t pool_offset;
  // Where it lies in the file, in bytes.
  uint64_t file_offset;
};

// What became of a file.
struct pgmap_event {
  // `PGMAP_CREATED` and so on; 0 for a change that this version does not know.
  uint32_t change;
  // Bytes of the name.
  uint32_t name_len;
  // The name, with a NUL after it.
  uint8_t name[256];
  // The file's number.
  uint64_t id;
  // The file's length in bytes.
  uint64_t len_bytes;
  // The number of the event, counted from 1 in each subscription.
  uint64_t sequence;
  // How many events just before it were lost, because nobody read them.
  uint64_t nr_missed;
};

// A quota, and how much of it is used.
struct pgmap_quota {
  // The user it is for, if `prefix_len` is 0.
  uint32_t uid;
  // Bytes of the prefix; 0 for the quota of a user.
  uint32_t prefix_len;
  // How the names begin that it is for, with a NUL after it.
  uint8_t prefix[256];
  // Most bytes of memory of its files, those that are being written among them, or
  // `PGMAP_NO_LIMIT`.
  uint64_t max_bytes;
  // Most files, those that are being written among them, or `PGMAP_NO_LIMIT`.
  uint64_t max_files;
  // Most clients of its user at a time, or `PGMAP_NO_LIMIT`.
  uint64_t max_clients;
  // Bytes of memory that its files have.
  uint64_t used_bytes;
  // Its files.
  uint64_t used_files;
  // The clients of its user that are connected; 0 for a prefix.
  uint64_t used_clients;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// What the last call that failed on this thread failed with: text that stays until the next one
// fails. Empty if none did.
const char *pgmap_last_error(void);

// The version of this library, as text.
const char *pgmap_version(void);

// Connects to the owner that listens at the socket `path`. `label` is what the process is called
// where people ask who holds what; it may be null. `deadline_ms` is how long this call and each
// later one waits for the owner; 0 stands for 10,000. `-ETIMEDOUT` if it does not answer,
// `-EDQUOT` if the user of this process has as many clients as a quota allows.
//
// # Safety
// `path` and `label` are NUL-terminated; `pool` has room for an address.
int pgmap_connect(const char *path,
                  const char *label,
                  uint32_t deadline_ms,
                  struct pgmap_pool **pool);

// As `pgmap_connect`. `flags`: `PGMAP_READ_ONLY`, or 0.
//
// With `PGMAP_READ_ONLY` all memory of the pool, and so that of segments, is mapped read-only: a
// store to it is `SIGSEGV`, and mprotect with `PROT_WRITE` is `EACCES`. Files are found, pinned
// and followed as by any other process; a device may only read them. Every call that changes
// something is `-EROFS`.
//
// # Safety
// As `pgmap_connect`.
int pgmap_connect_with(const char *path,
                       const char *label,
                       uint32_t deadline_ms,
                       uint32_t flags,
                       struct pgmap_pool **pool);

// Whether the process connected with `PGMAP_READ_ONLY`; false for null.
//
// # Safety
// `pool` is null or connected.
bool pgmap_is_read_only(const struct pgmap_pool *pool);

// Ends the connection. Writers, pins and subscriptions stay valid, and the process attached, until
// they are ended, too. Null is ignored.
//
// # Safety
// `pool` is null or connected, and is not used any more.
void pgmap_disconnect(struct pgmap_pool *pool);

// All memory of the pool, as this process has it mapped: to be registered with a device once. A
// segment's `pool_offset` counts from `address`. Mapped read-only if the process
// connected with `PGMAP_READ_ONLY`.
//
// # Safety
// `pool` is connected; `address` and `len_bytes` have room for one value each.
int pgmap_memory(struct pgmap_pool *pool, void **address, uint64_t *len_bytes);

// 1 if a file has this name, 0 if none has. Does not call the owner.
//
// # Safety
// `pool` is connected; `name` has `name_len` bytes.
int pgmap_exists(struct pgmap_pool *pool, const void *name, size_t name_len);

// Takes a name away at once; the memory is free when its last pin goes. `-ENOENT` if no file has
// it.
//
// # Safety
// `pool` is connected; `name` has `name_len` bytes.
int pgmap_unlink(struct pgmap_pool *pool, const void *name, size_t name_len);

// Gives a file another name. `flags`: `PGMAP_REPLACE`, or 0. `-ENOENT` if no file has the first
// name, `-EEXIST` if the other is taken, `-EDQUOT` if a quota of the other has no room.
//
// # Safety
// `pool` is connected; `name` has `name_len` bytes, `to` has `to_len`.
int pgmap_rename(struct pgmap_pool *pool,
                 const void *name,
                 size_t name_len,
                 const void *to,
                 size_t to_len,
                 uint32_t flags);

// Reserves a file of `len_bytes`, to be filled and committed. `flags`: `PGMAP_REPLACE`,
// `PGMAP_CHECKSUM`, `PGMAP_EVICTABLE`, or 0. `-EEXIST` if the name is taken, `-ENOSPC` if there is
// no room, `-EDQUOT` if a quota has none, `-EROFS` if the process connected read-only.
//
// # Safety
// `pool` is connected; `name` has `name_len` bytes; `writer` has room for an address.
int pgmap_create(struct pgmap_pool *pool,
                 const void *name,
                 size_t name_len,
                 uint64_t len_bytes,
                 uint32_t flags,
                 struct pgmap_writer **writer);

// Copies bytes into the file, from `offset` on. What is never written is zero.
//
// # Safety
// `writer` is open; `source` has `len` bytes.
int pgmap_write(struct pgmap_writer *writer, uint64_t offset, const void *source, size_t len);

// Where the file's memory lies, to be filled by other means: what is not written there has any
// bytes. Fills up to `room` segments and stores in `count` how many there are.
//
// # Safety
// `writer` is open; `segments` has room for `room` of them; `count` for one number.
int pgmap_writer_segments(struct pgmap_writer *writer,
                          struct pgmap_segment *segments,
                          size_t nr_room,
                          size_t *count);

// Says whether a device may be writing to the file from now on. Should this process die meanwhile,
// the memory is given to nobody while the device can still write to it.
//
// # Safety
// `writer` is open.
int pgmap_set_device(struct pgmap_writer *writer, bool is_device);

// Publishes the file under its name, and ends the writer, also when that fails: the file is given
// up then.
//
// # Safety
// `writer` is open, and is not used any more.
int pgmap_commit(struct pgmap_writer *writer);

// Gives the file up. Null is ignored.
//
// # Safety
// `writer` is null or open, and is not used any more.
void pgmap_abort(struct pgmap_writer *writer);

// Finds a file and pins all of it, without a call to the owner. `-ENOENT` if no file has this
// name.
//
// # Safety
// `pool` is connected; `name` has `name_len` bytes; `pin` has room for an address.
int pgmap_get(struct pgmap_pool *pool, const void *name, size_t name_len, struct pgmap_pin **pin);

// As `pgmap_get`, for a device that reads or writes the bytes: should this process die meanwhile,
// the memory is given to nobody while the device can still write to it.
//
// # Safety
// As `pgmap_get`.
int pgmap_get_for_device(struct pgmap_pool *pool,
                         const void *name,
                         size_t name_len,
                         struct pgmap_pin **pin);

// How many bytes are pinned; 0 for null.
//
// # Safety
// `pin` is null or pinned.
uint64_t pgmap_pin_len(const struct pgmap_pin *pin);

// Whether the file was unlinked or is being cut, and waits for this pin; false for null.
//
// # Safety
// `pin` is null or pinned.
bool pgmap_is_reclaim_requested(const struct pgmap_pin *pin);

// Where the pinned bytes lie, in the order of the file; a hole, whose bytes are zero, is left out.
// Fills up to `nr_room` segments and stores in `count` how many there are.
//
// # Safety
// `pin` is pinned; `segments` has room for `nr_room` of them; `count` for one number.
int pgmap_pin_segments(struct pgmap_pin *pin,
                       struct pgmap_segment *segments,
                       size_t nr_room,
                       size_t *count);

// Copies pinned bytes out, from `offset` on.
//
// # Safety
// `pin` is pinned; `target` has room for `len` bytes.
int pgmap_read(struct pgmap_pin *pin, uint64_t offset, void *target, size_t len);

// Releases the bytes. Null is ignored.
//
// # Safety
// `pin` is null or pinned, and is not used any more.
void pgmap_unpin(struct pgmap_pin *pin);

// Follows the files whose names begin with `prefix`; all of them if `prefix_len` is 0.
//
// # Safety
// `pool` is connected; `prefix` has `prefix_len` bytes; `events` has room for an address.
int pgmap_subscribe(struct pgmap_pool *pool,
                    const void *prefix,
                    size_t prefix_len,
                    struct pgmap_events **events);

// A descriptor that is readable when there may be an event: for poll, and never to be read from or
// closed. Take events until there are no more: one message may bring several.
//
// # Safety
// `events` is subscribed.
int pgmap_events_fd(struct pgmap_events *events);

// The next event, waiting up to `timeout_ms` for it: 1 if there is one, 0 if not. `-ESHUTDOWN`
// when the owner has ended.
//
// # Safety
// `events` is subscribed; `event` has room for one.
int pgmap_events_next(struct pgmap_events *events, uint32_t timeout_ms, struct pgmap_event *event);

// Ends the subscription. Null is ignored.
//
// # Safety
// `events` is null or subscribed, and is not used any more.
void pgmap_unsubscribe(struct pgmap_events *events);

// Limits what the user `uid` may have in the pool: bytes of memory and number of the files that
// its clients create, those that are being written among them, and clients at a time. Each is a
// number or `PGMAP_NO_LIMIT`. The quota replaces an earlier one of the same user, and is kept in
// the pool. What is there and exceeds it stays. A create or rename that would exceed it first
// evicts files that it counts and that may be evicted, then is `-EDQUOT`; so is a connect.
//
// `-EPERM` unless this process runs as root or as the owner's user; `-EROFS` if it connected
// read-only; `-EINVAL` if nothing is limited; `-E2BIG` for more than `PGMAP_MAX_QUOTAS` quotas.
//
// # Safety
// `pool` is connected.
int pgmap_set_uid_quota(struct pgmap_pool *pool,
                        uint32_t uid,
                        uint64_t max_bytes,
                        uint64_t max_files,
                        uint64_t max_clients);

// As `pgmap_set_uid_quota`, for all files whose names begin with `prefix`, of all users. A
// prefix has 1 to 255 bytes. A file that several quotas count must not exceed any of them.
//
// # Safety
// `pool` is connected; `prefix` has `prefix_len` bytes.
int pgmap_set_prefix_quota(struct pgmap_pool *pool,
                           const void *prefix,
                           size_t prefix_len,
                           uint64_t max_bytes,
                           uint64_t max_files);

// Ends the quota of a user. `-EINVAL` if there is none; `-EPERM` and `-EROFS` as
// `pgmap_set_uid_quota`.
//
// # Safety
// `pool` is connected.
int pgmap_remove_uid_quota(struct pgmap_pool *pool, uint32_t uid);

// Ends the quota of a prefix. `-EINVAL` if there is none; `-EPERM` and `-EROFS` as
// `pgmap_set_uid_quota`.
//
// # Safety
// `pool` is connected; `prefix` has `prefix_len` bytes.
int pgmap_remove_prefix_quota(struct pgmap_pool *pool, const void *prefix, size_t prefix_len);

// The quotas and how much of each is used, those of users first. Fills up to `nr_room` of the
// caller's array and stores in `count` how many there are; `PGMAP_MAX_QUOTAS` is room for all.
// Any process may ask.
//
// # Safety
// `pool` is connected; `quotas` has room for `nr_room` of them; `count` for one number.
int pgmap_quotas(struct pgmap_pool *pool,
                 struct pgmap_quota *quotas,
                 size_t nr_room,
                 size_t *count);

// Has the owner keep room free, so that a create need not wait for it: with fewer than `low_bytes`
// free it evicts files that may be evicted, the least recently used first, until `high_bytes` are
// free. Two zeros end it. The pool keeps the marks.
//
// `-EINVAL` unless the low mark is below the high one, which is at most the pool's size;
// `-EPERM` and `-EROFS` as `pgmap_set_uid_quota`.
//
// # Safety
// `pool` is connected.
int pgmap_set_water_marks(struct pgmap_pool *pool, uint64_t low_bytes, uint64_t high_bytes);

// The water marks in bytes; zeros if there are none. Any process may ask.
//
// # Safety
// `pool` is connected; `low_bytes` and `high_bytes` have room for one value each.
int pgmap_water_marks(struct pgmap_pool *pool, uint64_t *low_bytes, uint64_t *high_bytes);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* PGMAP_H */
