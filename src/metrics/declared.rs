//! A metric: its declaration, and the handle that counts.

use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::OnceLock;

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

use super::histogram::Histogram;

/// What is known of a metric before it has values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Declaration {
    pub(super) name: &'static str,
    pub(super) unit: Unit,
    pub(super) help: &'static str,
    /// Upper bounds of a histogram.
    pub(super) bounds: &'static [f64],
    /// The label; empty if there is none.
    pub(super) label: &'static str,
    /// The label's values, as far as they are known at compile time.
    pub(super) values: fn() -> Vec<&'static str>,
}

impl Declaration {
    pub(super) const fn new(name: &'static str, unit: Unit, help: &'static str) -> Self {
        Self { name, unit, help, bounds: &[], label: "", values: Vec::new }
    }
}

/// A metric, which dereferences to its handle. The handle is made once, so that counting costs an
/// atomic addition.
#[derive(Debug)]
pub(crate) struct Metric<H> {
    pub(super) declaration: Declaration,
    handle: OnceLock<H>,
}

impl<H> Metric<H> {
    pub(super) const fn new(declaration: Declaration) -> Self {
        Self { declaration, handle: OnceLock::new() }
    }
}

impl Metric<Histogram> {
    /// The upper bounds, without the infinite one.
    pub(crate) fn bounds(&self) -> &'static [f64] {
        self.declaration.bounds
    }
}

impl Metric<Counters> {
    /// Makes a counter for each of these values of the label, which are not known at compile time.
    pub(super) fn register(&self, values: impl Iterator<Item = &'static str>) {
        self.by_value.get_or_init(|| by_value(&self.declaration, values));
    }
}

impl<H: Handle> Deref for Metric<H> {
    type Target = H;

    fn deref(&self) -> &H {
        self.handle.get_or_init(|| H::make(&self.declaration))
    }
}

/// A metric whatever its handle is.
pub(super) trait Declared: Sync {
    /// Makes the handle, so that the series exist from the start.
    fn make(&self);

    /// Appends the series to an exposition, if the recorder does not know them.
    fn render(&self, into: &mut String);
}

impl<H: Handle + Send + Sync> Declared for Metric<H> {
    fn make(&self) {
        let _: &H = self;
    }

    fn render(&self, into: &mut String) {
        H::render(self, &self.declaration, into);
    }
}

/// What counts the values of a metric.
pub(super) trait Handle {
    fn make(declaration: &Declaration) -> Self;

    fn render(&self, _: &Declaration, _: &mut String) {}
}

impl Handle for Counter {
    fn make(Declaration { name, unit, help, .. }: &Declaration) -> Self {
        describe_counter!(*name, *unit, *help);
        counter!(*name)
    }
}

impl Handle for Gauge {
    fn make(Declaration { name, unit, help, .. }: &Declaration) -> Self {
        describe_gauge!(*name, *unit, *help);
        gauge!(*name)
    }
}

/// A counter for each value of a label.
#[derive(Debug)]
pub(crate) struct Counters {
    /// Set once the values are known.
    by_value: OnceLock<Vec<(&'static str, Counter)>>,
    /// For values that do not exist.
    none: Counter,
}

fn by_value(
    Declaration { name, label, .. }: &Declaration,
    values: impl Iterator<Item = &'static str>,
) -> Vec<(&'static str, Counter)> {
    values.map(|value| (value, counter!(*name, *label => value))).collect()
}

impl Counters {
    pub(super) fn get(&self, value: &str) -> &Counter {
        let mut counters = self.by_value.get().into_iter().flatten();
        counters.find(|(known, _)| *known == value).map_or(&self.none, |(_, counter)| counter)
    }
}

impl Handle for Counters {
    fn make(declaration: &Declaration) -> Self {
        describe_counter!(declaration.name, declaration.unit, declaration.help);
        let counters = Self { by_value: OnceLock::new(), none: Counter::noop() };
        let values = (declaration.values)();
        if !values.is_empty() {
            counters.by_value.get_or_init(|| by_value(declaration, values.into_iter()));
        }
        counters
    }
}

/// Handles for the values of a label that are known at run time only.
#[derive(Debug)]
pub(crate) struct Family<H> {
    declaration: Declaration,
    handle: PhantomData<H>,
}

impl Family<Counter> {
    pub(super) fn of(&self, value: &str) -> Counter {
        counter!(self.declaration.name, self.declaration.label => value.to_owned())
    }
}

impl Family<Gauge> {
    pub(super) fn of(&self, value: &str) -> Gauge {
        gauge!(self.declaration.name, self.declaration.label => value.to_owned())
    }
}

impl Handle for Family<Counter> {
    fn make(&declaration: &Declaration) -> Self {
        describe_counter!(declaration.name, declaration.unit, declaration.help);
        Self { declaration, handle: PhantomData }
    }
}

impl Handle for Family<Gauge> {
    fn make(&declaration: &Declaration) -> Self {
        describe_gauge!(declaration.name, declaration.unit, declaration.help);
        Self { declaration, handle: PhantomData }
    }
}
