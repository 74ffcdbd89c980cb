//! Names of the system's error numbers, as `errno(3)` lists them.

/// Those that the system calls of this command and the library's own errors can end with.
#[rustfmt::skip]
const NAMES: &[(i32, &str)] = &[
    (libc::EPERM, "EPERM"), (libc::ENOENT, "ENOENT"), (libc::ESRCH, "ESRCH"),
    (libc::EINTR, "EINTR"), (libc::EIO, "EIO"), (libc::ENXIO, "ENXIO"), (libc::E2BIG, "E2BIG"),
    (libc::EBADF, "EBADF"), (libc::ECHILD, "ECHILD"), (libc::EAGAIN, "EAGAIN"),
    (libc::ENOMEM, "ENOMEM"), (libc::EACCES, "EACCES"), (libc::EFAULT, "EFAULT"),
    (libc::ENOTBLK, "ENOTBLK"), (libc::EBUSY, "EBUSY"), (libc::EEXIST, "EEXIST"),
    (libc::EXDEV, "EXDEV"), (libc::ENODEV, "ENODEV"), (libc::ENOTDIR, "ENOTDIR"),
    (libc::EISDIR, "EISDIR"), (libc::EINVAL, "EINVAL"), (libc::ENFILE, "ENFILE"),
    (libc::EMFILE, "EMFILE"), (libc::ENOTTY, "ENOTTY"), (libc::ETXTBSY, "ETXTBSY"),
    (libc::EFBIG, "EFBIG"), (libc::ENOSPC, "ENOSPC"), (libc::ESPIPE, "ESPIPE"),
    (libc::EROFS, "EROFS"), (libc::EMLINK, "EMLINK"), (libc::EPIPE, "EPIPE"),
    (libc::EDOM, "EDOM"), (libc::ERANGE, "ERANGE"), (libc::EDEADLK, "EDEADLK"),
    (libc::ENAMETOOLONG, "ENAMETOOLONG"), (libc::ENOLCK, "ENOLCK"), (libc::ENOSYS, "ENOSYS"),
    (libc::ENOTEMPTY, "ENOTEMPTY"), (libc::ELOOP, "ELOOP"), (libc::ENODATA, "ENODATA"),
    (libc::EPROTO, "EPROTO"), (libc::EBADMSG, "EBADMSG"), (libc::EOVERFLOW, "EOVERFLOW"),
    (libc::EUSERS, "EUSERS"), (libc::ENOTSOCK, "ENOTSOCK"), (libc::EMSGSIZE, "EMSGSIZE"),
    (libc::EPROTOTYPE, "EPROTOTYPE"), (libc::EOPNOTSUPP, "EOPNOTSUPP"),
    (libc::EAFNOSUPPORT, "EAFNOSUPPORT"), (libc::EADDRINUSE, "EADDRINUSE"),
    (libc::EADDRNOTAVAIL, "EADDRNOTAVAIL"), (libc::ENETDOWN, "ENETDOWN"),
    (libc::ECONNABORTED, "ECONNABORTED"), (libc::ECONNRESET, "ECONNRESET"),
    (libc::ENOBUFS, "ENOBUFS"), (libc::EISCONN, "EISCONN"), (libc::ENOTCONN, "ENOTCONN"),
    (libc::ESHUTDOWN, "ESHUTDOWN"), (libc::ETIMEDOUT, "ETIMEDOUT"),
    (libc::ECONNREFUSED, "ECONNREFUSED"), (libc::EALREADY, "EALREADY"),
    (libc::EINPROGRESS, "EINPROGRESS"), (libc::ESTALE, "ESTALE"), (libc::EUCLEAN, "EUCLEAN"),
    (libc::EREMOTEIO, "EREMOTEIO"), (libc::EDQUOT, "EDQUOT"), (libc::ECANCELED, "ECANCELED"),
    (libc::EOWNERDEAD, "EOWNERDEAD"), (libc::EHWPOISON, "EHWPOISON"),
];

/// The name of an error number, `None` if it is none of these.
pub fn name(number: i32) -> Option<&'static str> {
    NAMES.iter().find(|&&(known, _)| known == number).map(|&(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_has_two_names() {
        for (at, (number, text)) in NAMES.iter().enumerate() {
            assert!(NAMES[..at].iter().all(|(other, _)| other != number), "{text}");
        }
        assert_eq!(name(2), Some("ENOENT"));
        assert_eq!(name(133), Some("EHWPOISON"));
        assert_eq!(name(0), None);
    }
}
