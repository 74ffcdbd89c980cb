//! How a client attaches: what it is called, and how long it waits for its owner.

use std::time::Duration;

use crate::client::data::Stance;

/// How long a call waits for the owner's answer if the client says nothing else.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// How a client attaches.
///
/// ```
/// use std::time::Duration;
/// use pgmap::ConnectOptions;
///
/// let options = ConnectOptions::new().label("loader").deadline(Duration::from_secs(2));
/// # drop(options);
/// ```
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    pub(super) label: Option<String>,
    pub(super) deadline: Duration,
    pub(super) stance: Stance,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self { label: None, deadline: DEFAULT_DEADLINE, stance: Stance::Writer }
    }
}

impl ConnectOptions {
    /// The process's name and number as the label, and [`DEFAULT_DEADLINE`].
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says what the client is called where people ask who holds what. Of it
    /// [`wire::MAX_LABEL_CHARS`](crate::wire::MAX_LABEL_CHARS) characters are kept, and those that
    /// control a terminal are replaced.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Says how long attaching, and each call after it, waits for the owner.
    #[must_use]
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Attaches to read only: the pool's memory is mapped so that it cannot be written, over
    /// descriptors that the kernel maps for nothing else, and the owner refuses every call that
    /// changes anything ([`Refusal::ReadOnlyClient`](crate::Refusal::ReadOnlyClient)). Files are
    /// pinned as by any client, and stay as long as they are.
    #[must_use]
    pub const fn read_only(mut self) -> Self {
        self.stance = Stance::Reader;
        self
    }
}

/// Whether something takes the place of what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Replace {
    /// It is an error when something is there.
    #[default]
    No,
    /// What is there is unlinked in the same step.
    Yes,
}

/// What a process calls itself that was given no name.
pub(crate) fn default_label() -> String {
    let pid = pgmap_os::process::id();
    let command = i32::try_from(pid).ok().and_then(pgmap_os::process::command_name);
    format!("{} (own pid {pid})", command.as_deref().unwrap_or("?"))
}
