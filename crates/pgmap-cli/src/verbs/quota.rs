//! `pgmap quota ls | set | rm`: what users and name prefixes may take of a pool.

use std::ffi::OsString;

use pgmap::quota::{QuotaInfo, QuotaLimits, QuotaOf};
use pgmap::{Client, FileName};
use serde::Serialize;

use crate::attach::{Place, attach, name_bytes};
use crate::failure::Failure;
use crate::names::Exact;
use crate::output::{Output, Show, Units};
use crate::sizes;
use crate::table::{Side, Table};

/// List, set or remove what users and name prefixes may take of the pool
///
/// A quota counts files by the user whose client created them, or by how their names begin; files
/// that are being written count. What would exceed it is refused (`over_quota`, EDQUOT), after
/// files that it counts and that may be evicted have made room, the least recently used first.
/// Quotas are on record in the pool, and are there when it is served again. Only root and the
/// server's user may set them.
#[derive(Debug, clap::Args)]
pub struct Quota {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Ls(Ls),
    Set(Set),
    Rm(Rm),
}

/// List the quotas, and how much of each is used
#[derive(Debug, clap::Args)]
struct Ls {}

/// Set a quota, in the place of what it was before
///
/// What is not named is not limited. Files that are there and exceed it stay.
#[derive(Debug, clap::Args)]
struct Set {
    #[command(flatten)]
    of: Of,
    #[command(flatten)]
    limits: Limits,
}

/// Remove a quota
#[derive(Debug, clap::Args)]
struct Rm {
    #[command(flatten)]
    of: Of,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Of {
    /// Files whose names begin so
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<OsString>,
    /// Files that clients of this user create
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct Limits {
    /// Most bytes of memory
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse)]
    bytes: Option<u64>,
    /// Most files: a number, or thousands as 100k
    #[arg(long, value_name = "N", value_parser = parse_count)]
    files: Option<u64>,
    /// Most clients of a user at a time: each has a bounded number of pins
    #[arg(long, value_name = "N")]
    clients: Option<u64>,
}

fn parse_count(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1_000),
        None => match text.strip_suffix('M') {
            Some(digits) => (digits, 1_000_000),
            None => (text, 1),
        },
    };
    let number = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    number.ok_or_else(|| format!("`{text}` is no number of files: write 5000, 100k or 2M"))
}

/// A quota as tables and JSON show it.
#[derive(Debug, Serialize)]
struct Row {
    /// The user, if it is one's.
    uid: Option<u32>,
    /// How the names begin, if it is a prefix's.
    #[serde(flatten)]
    prefix: Exact,
    max_bytes: Option<u64>,
    used_bytes: u64,
    max_files: Option<u64>,
    used_files: u64,
    max_clients: Option<u64>,
    used_clients: Option<u64>,
}

impl From<QuotaInfo> for Row {
    fn from(info: QuotaInfo) -> Self {
        let (uid, prefix) = match &info.of {
            QuotaOf::Uid(uid) => (Some(*uid), None),
            QuotaOf::Prefix(prefix) => (None, Some(prefix.as_bytes())),
        };
        Self {
            uid,
            prefix: Exact::prefix(prefix),
            max_bytes: info.limits.bytes,
            used_bytes: info.used_bytes,
            max_files: info.limits.files,
            used_files: info.used_files,
            max_clients: info.limits.clients,
            used_clients: uid.map(|_| info.used_clients),
        }
    }
}

impl Row {
    fn of(&self) -> String {
        match (self.uid, self.prefix.shown()) {
            (Some(uid), _) => format!("uid {uid}"),
            (None, prefix) => format!("prefix {}", prefix.unwrap_or_default()),
        }
    }
}

#[derive(Debug, Serialize)]
struct Listing {
    schema: &'static str,
    quotas: Vec<Row>,
}

impl Show for Listing {
    fn table(&self, units: Units) -> Table {
        let mut table = Table::new(&[
            ("QUOTA OF", Side::Left),
            ("USED", Side::Right),
            ("OF BYTES", Side::Right),
            ("FILES", Side::Right),
            ("OF FILES", Side::Right),
            ("CLIENTS", Side::Right),
            ("OF CLIENTS", Side::Right),
        ]);
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        for row in &self.quotas {
            table.row(vec![
                row.of(),
                units.bytes(row.used_bytes),
                or_none(row.max_bytes.map(|bytes| units.bytes(bytes))),
                row.used_files.to_string(),
                or_none(row.max_files.map(|files| files.to_string())),
                or_none(row.used_clients.map(|clients| clients.to_string())),
                or_none(row.max_clients.map(|clients| clients.to_string())),
            ]);
        }
        table.closing(match self.quotas.len() {
            1 => "1 quota".into(),
            number => format!("{number} quotas"),
        });
        table
    }
}

impl Of {
    fn subject(&self) -> Result<QuotaOf, Failure> {
        match (self.uid, &self.prefix) {
            (Some(uid), _) => Ok(QuotaOf::Uid(uid)),
            (None, prefix) => {
                let prefix = name_bytes(prefix.as_deref().unwrap_or_default());
                Ok(QuotaOf::Prefix(FileName::new(prefix).map_err(pgmap::Error::from)?))
            }
        }
    }
}

impl Quota {
    /// Lists, sets or removes.
    ///
    /// # Errors
    /// When the owner cannot be reached, or refuses.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let client = attach(place)?;
        match self.what {
            What::Ls(Ls {}) => {}
            What::Set(set) => {
                let Limits { bytes, files, clients } = set.limits;
                client.set_quota(set.of.subject()?, QuotaLimits { bytes, files, clients })?;
            }
            What::Rm(rm) => client.remove_quota(rm.of.subject()?)?,
        }
        output.show(&Listing { schema: "pgmap.quotas/1", quotas: rows(&client)? })
    }
}

fn rows(client: &Client) -> Result<Vec<Row>, Failure> {
    Ok(client.quotas()?.into_iter().map(Row::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_files_may_be_in_thousands() {
        assert_eq!(parse_count("7"), Ok(7));
        assert_eq!(parse_count("100k"), Ok(100_000));
        assert_eq!(parse_count("2M"), Ok(2_000_000));
        for text in ["", "k", "1G", "-1", "1.5k", "99999999999999999999"] {
            assert!(parse_count(text).is_err(), "{text}");
        }
    }
}
