//! Phrases that stay out of comments, messages and documents, and what to write instead. STYLE.md
//! has the glossary that they follow.

/// A phrase, in lower case, and the standard one.
pub type Idiom = (&'static str, &'static str);

/// The table to edit when a phrase is found that only its author understands.
pub const IDIOMS: &[Idiom] = &[
    ("wanted back", "reclaim requested"),
    ("wants back", "requests reclaim of"),
    ("wants the frames back", "requests reclaim of the frames"),
    ("wants them back", "requests reclaim of them"),
    ("want the frames back", "request reclaim of the frames"),
    ("want them back", "request reclaim of them"),
    ("anew", "again"),
    ("none when", "`None` if"),
    ("none where", "`None` if"),
    ("for long", "long-term"),
    ("that is none", "invalid, and say the value"),
    ("that are none", "invalid, and say the value"),
    ("is told", "is notified, is given, is reported"),
    ("are told", "are notified, are given, are reported"),
    ("unasked", "unsolicited"),
    ("take up with", "reconnect to"),
    ("takes up with", "reconnects to"),
    ("taken up with", "reconnected to"),
    ("too busy to be believed", "too noisy to trust"),
    ("end of numbers", "overflows u64"),
    ("dear", "expensive"),
    ("dearer", "more expensive"),
    ("at a glance", "on the fast path; a summary of"),
    ("adrift", "disconnected"),
    ("stretch", "range, run"),
    ("stretches", "ranges, runs"),
    ("sits on", "uses, is registered for"),
];

/// What begins with one of these phrases and is plain English all the same.
pub const NOT_IDIOMS: &[&str] = &["for long enough"];
