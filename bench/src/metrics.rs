//! Reading the metrics of a Weir process.

use std::collections::BTreeMap;
use std::time::Duration;

/// One scrape: `name{labels}` to value.
#[derive(Clone, Debug, Default)]
pub struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    /// Fetches `url`.
    pub fn fetch(url: &str) -> anyhow::Result<Self> {
        let client = reqwest::blocking::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(10))
            .build()?;
        let text = client.get(url).send()?.error_for_status()?.text()?;
        let samples = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (name, value) = line.rsplit_once(' ')?;
                Some((name.to_owned(), value.parse().ok()?))
            });
        Ok(Self(samples.collect()))
    }

    /// Sum of the samples of `name` whose labels contain `label` (all when it is empty).
    pub fn sum(&self, name: &str, label: &str) -> f64 {
        self.0
            .iter()
            .filter(|(sample, _)| {
                let (sample, labels) = sample.split_once('{').unwrap_or((sample, ""));
                sample == name && labels.contains(label)
            })
            .map(|(_, value)| value)
            .sum()
    }
}
