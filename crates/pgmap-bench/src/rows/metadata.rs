//! Metadata per TiB by folio size: the resident pages of the descriptors' memory, counted.

use pgmap::mm::folio::Sizing;
use pgmap::mm::level::Level;

use crate::failure::Failure;
use crate::harness::Scale;
use crate::measure::Verdict;
use crate::report::Figure;
use crate::space::Space;

const TIB: u64 = 1 << 40;
const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * 1024.0;
const GIB: u64 = 1 << 30;

/// Memory of a space of `len_bytes` after each of `parts` has its share of folios.
fn filled(len_bytes: u64, parts: &[(Level, u64)]) -> Result<f64, Failure> {
    let mut space = Space::new(len_bytes)?;
    for &(level, bytes) in parts {
        // Files of 1 GiB, and of 2 MiB where folios are small.
        let file = if level == Level::Pte { Level::Pmd } else { Level::Pud };
        for _ in 0..bytes / file.size_bytes() {
            space.publish(file.nr_pages(), Sizing::Fixed(level))?;
        }
    }
    Ok(space.vmemmap_bytes() as f64)
}

fn figure(name: &str, bytes: f64, unit: &'static str, most: f64) -> Figure {
    let scale = if unit == "KiB" { KIB } else { MIB };
    let value = bytes / scale;
    let verdict = Verdict { target: format!("<= {most} {unit}"), is_met: value <= most };
    Figure { name: format!("metadata: {name}"), value, unit, verdict: Some(verdict) }
}

/// The figures.
pub fn figures(scale: Scale) -> Result<Vec<Figure>, Failure> {
    let span = scale.pick(16, 1) * GIB;
    let small = filled(span, &[(Level::Pte, span)])? * (TIB / span) as f64;
    let small_share = scale.pick(8, 1) * GIB;
    let large_share = TIB / 2;
    let mix = [
        (Level::Pud, large_share),
        (Level::Pmd, TIB - large_share - small_share),
        (Level::Pte, small_share),
    ];
    let mixed = filled(TIB, &mix)?;
    let mix_name = format!(
        "1 TiB, {} x 1 GiB folios, {} GiB of 4 KiB, rest 2 MiB",
        large_share / GIB,
        small_share / GIB
    );
    let share = |bytes: u64| bytes as f64 / TIB as f64;
    let most = 24.0 / KIB + 12.0 * (1.0 - share(large_share)) + 4096.0 * share(small_share);
    Ok(vec![
        figure("1 TiB of 1 GiB folios", filled(TIB, &[(Level::Pud, TIB)])?, "KiB", 24.0),
        figure("1 TiB of 2 MiB folios", filled(TIB, &[(Level::Pmd, TIB)])?, "MiB", 12.0),
        figure(
            &format!("1 TiB of 4 KiB folios, scaled from {} GiB", span / GIB),
            small,
            "MiB",
            4096.0,
        ),
        // What the targets of its parts allow.
        figure(&mix_name, mixed, "MiB", (most * 10.0).round() / 10.0),
    ])
}
