//! The last lines of `cargo test`: what was skipped, and why.
//!
//! Test targets run in the order of their names, and this one has no harness that would keep what it
//! prints to itself.

#[allow(dead_code, reason = "tests note what they skip, and this reports it")]
#[path = "support/skip.rs"]
mod skip;

fn main() {
    let skipped = skip::take_skipped();
    if skipped.is_empty() {
        println!("\nskipped for lack of a prerequisite: nothing");
        return;
    }
    println!("\nskipped for lack of a prerequisite: {}", skipped.len());
    for line in skipped {
        println!("  {line}");
    }
}
