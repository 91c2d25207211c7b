//! livebridge's command line.

fn main() {}
