//! Reading the metrics of a Weir process.

use std::collections::BTreeMap;

use crate::http::Http;

/// One scrape: `name{labels}` to value.
#[derive(Clone, Debug, Default)]
pub struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    /// Fetches `url`.
    pub fn fetch(url: &str) -> anyhow::Result<Self> {
        let path = url.splitn(4, '/').nth(3).unwrap_or_default();
        let mut text = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        Http::connect(url)?.get(&format!("/{path}"), &mut buffer, |piece| {
            text.extend_from_slice(piece);
        })?;
        Ok(Self(samples(&String::from_utf8(text)?)))
    }

    /// How many samples of `name` there are.
    pub fn samples(&self, name: &str) -> usize {
        let of_name = |sample: &&String| sample.split('{').next() == Some(name);
        self.0.keys().filter(of_name).count()
    }

    /// Sum of the samples of `name` whose labels contain `label` (all when it is empty).
    pub fn sum(&self, name: &str, label: &str) -> f64 {
        sum(&self.0, name, label)
    }
}

/// The samples of a page of metrics: `name{labels}` to value.
pub fn samples(page: &str) -> BTreeMap<String, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let samples = lines.filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    samples.collect()
}

/// Sum of the samples of `name` whose labels contain `label` (all when it is empty).
pub fn sum(samples: &BTreeMap<String, f64>, name: &str, label: &str) -> f64 {
    let of_name = samples.iter().filter(|(sample, _)| {
        let (sample, labels) = sample.split_once('{').unwrap_or((sample, ""));
        sample == name && labels.contains(label)
    });
    of_name.map(|(_, value)| value).sum()
}
