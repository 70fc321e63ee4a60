//! The name that somebody likely meant who wrote another.

/// The known name that is most like `written`, if one is like it at all.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Longer words are nobody's mistyped name, and comparing takes the product of the lengths.
    const LONGEST: usize = 64;
    if written.len() > LONGEST {
        return None;
    }
    let written = written.to_lowercase();
    let score = |name: &'a str| {
        (
            strsim::damerau_levenshtein(&written, &name.to_lowercase()),
            name,
        )
    };
    let (distance, name) = known.into_iter().map(score).min()?;
    // A third of the letters may be wrong.
    (distance <= name.len().max(3) / 3).then_some(name)
}

/// `, did you mean \`sources\`?`, or that there is no such name among the known.
pub fn did_you_mean<'a>(written: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(name) = nearest(written, known.clone()) {
        return format!(", did you mean `{name}`?");
    }
    let known: Vec<String> = known.into_iter().map(|name| format!("`{name}`")).collect();
    format!("; known are {}", known.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_a_far_one_is_not() {
        let known = ["sources", "url", "path", "endpoint", "exclude", "include"];
        for (written, meant) in [
            ("source", Some("sources")),
            ("Sources", Some("sources")),
            ("uri", Some("url")),
            ("endpiont", Some("endpoint")),
            ("excludes", Some("exclude")),
            ("placement", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, known), meant, "{written}");
        }
        assert_eq!(nearest(&"x".repeat(10_000), known), None);
        assert_eq!(nearest("x", []), None);
        assert_eq!(did_you_mean("x", ["ab"]), "; known are `ab`");
    }
}
