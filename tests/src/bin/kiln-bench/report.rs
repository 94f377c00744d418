//! The lines that a benchmark prints.

#![expect(clippy::print_stdout, reason = "this is the printer of the benchmark")]

/// Prints `name value unit`, without a bar: a yardstick, or for information.
pub(crate) fn figure(name: &str, value: f64, unit: &str) {
    println!("{name} {value:.1} {unit}");
}

/// Prints `name value unit ratio=… bar=… ok|short`: the ratio must reach the bar.
pub(crate) fn at_least(name: &str, value: f64, unit: &str, yardstick: f64, bar: f64) {
    let ratio = value / yardstick;
    println!("{name} {value:.1} {unit} ratio={ratio:.3} bar={bar} {}", verdict(ratio >= bar));
}

/// Prints the same where the ratio must stay below the bar.
pub(crate) fn at_most(name: &str, value: f64, unit: &str, yardstick: f64, bar: f64) {
    let ratio = value / yardstick;
    println!("{name} {value:.1} {unit} ratio={ratio:.3} bar={bar} {}", verdict(ratio <= bar));
}

fn verdict(reached: bool) -> &'static str {
    if reached { "ok" } else { "short" }
}

/// Prints what went wrong, or what was left out.
pub(crate) fn trouble(text: &str) {
    println!("{text}");
}
