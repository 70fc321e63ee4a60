//! The files of a crate import each other in one direction.
//!
//! A file uses another one if it names something of it, in a `use` or anywhere else, also through a re-export. These
//! uses must not lead back to where they began. A file and the folder of its name are one concept cut into parts, and may
//! use each other as they like; so may tests.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::path::Path;

use crate::Case;
use crate::system::docs::{members, root};

pub(crate) const CASES: &[Case] = &[
    (
        "no_files_of_a_crate_import_each_other_in_a_circle",
        no_files_of_a_crate_import_each_other_in_a_circle,
    ),
    (
        "circles_are_found_and_other_uses_are_none",
        circles_are_found_and_other_uses_are_none,
    ),
];

/// A module by the names that lead to it. The crate itself has none.
type Module = Vec<String>;
/// A path as it is written: `crate`, `error`, `Failure`.
type Written = Vec<String>;

/// Imports and re-exports that a path is followed through.
const MAX_RE_EXPORTS: usize = 8;

fn no_files_of_a_crate_import_each_other_in_a_circle() {
    let (mut files, mut circles) = (0, Vec::new());
    for member in members() {
        let uses = Uses::of(&sources(&root().join(&member).join("src")));
        files += uses.0.len();
        let found = uses.circles();
        circles.extend(found.iter().map(|circle| format!("{member}: {circle}")));
    }
    assert!(files > 200, "only {files} files were found");
    let circles = circles.join("\n");
    assert!(
        circles.is_empty(),
        "move what is shared to where both may look:\n{circles}"
    );
}

fn circles_are_found_and_other_uses_are_none() {
    let circles = |files: &[(&str, &str)]| {
        let files = files
            .iter()
            .map(|(name, text)| (module_of(Path::new(name)), *text));
        Uses::of(&files.map(|(m, t)| (m, t.to_owned())).collect()).circles()
    };
    let lib = ("lib.rs", "mod a; mod b; mod c; pub use b::Thing;");
    let uses_a = ("b.rs", "use crate::a::{self, One};");
    let found = [
        ("a.rs", "use std::fmt; use crate::{c, b::Other as Name};"),
        ("a.rs", "use super::Thing;"),
        ("a.rs", "fn f() -> crate::Thing { todo!() }"),
        ("a.rs", "use super::*; fn f() { super::b::g(); }"),
        (
            "a.rs",
            "use crate::b; const QUOTE: char = '\"'; fn f<'a>(x: &'a b::Y) {}",
        ),
        ("a.rs", "mod inner { use super::super::b::X; }"),
        ("a.rs", "#[cfg(test)] use crate::c; use crate::b::X;"),
    ];
    for a in found {
        let found = circles(&[lib, a, uses_a, ("c.rs", "")]);
        let [circle] = &found[..] else {
            panic!("{a:?} gives {found:?}")
        };
        assert!(
            circle.contains("a -> b") && circle.contains("b -> a"),
            "{circle}"
        );
    }
    let through = [
        lib,
        ("a.rs", "use crate::c::X;"),
        uses_a,
        ("c.rs", "use crate::b::X;"),
    ];
    assert_eq!(circles(&through).len(), 1);
    let none = [
        (
            "a.rs",
            "// use crate::b::X;\n/* use crate::b; /* */ */ const T: &str = \"crate::b::X\";",
        ),
        (
            "a.rs",
            "const T: &str = r#\"\" crate::b::X\"#; const U: &[u8] = b\"\\\"crate::b::X\";",
        ),
        (
            "a.rs",
            "#[cfg(test)]\nmod tests { use crate::b::X; fn f() {} }",
        ),
        (
            "a.rs",
            "#[cfg(test)] use crate::b::{X, Y}; struct S { #[cfg(test)] x: crate::b::X, y: u8 }",
        ),
        ("a.rs", "#[cfg(test)] mod tests;"),
        ("a.rs", "mod part; use part::X;"),
        ("a.rs", "use b::X; fn f() -> other::b::Y {}"),
    ];
    for a in none {
        let tests = ("a/tests.rs", "use crate::b::X;");
        let part = ("a/part.rs", "use super::Y;");
        let files = [lib, a, uses_a, tests, part, ("c.rs", "use crate::a::X;")];
        assert_eq!(circles(&files), [""; 0], "{a:?}");
    }
}

/// The files below a directory, by the modules that they are.
fn sources(dir: &Path) -> BTreeMap<Module, String> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap();
            if path.is_dir() && !name.starts_with("bin") {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") && name != "main.rs" {
                found.insert(module_of(name), std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    if let Ok(main) = std::fs::read_to_string(dir.join("main.rs")) {
        found.entry(Vec::new()).or_insert(main);
    }
    found
}

fn module_of(file: &Path) -> Module {
    let names = file.with_extension("");
    let names = names.iter().map(|name| name.to_string_lossy().into_owned());
    names
        .filter(|name| name != "lib" && name != "main")
        .collect()
}

/// Which modules of a crate each one uses, and by which path it does.
struct Uses(BTreeMap<Module, BTreeMap<Module, String>>);

impl Uses {
    fn of(files: &BTreeMap<Module, String>) -> Self {
        let read: BTreeMap<&Module, Scanned> = files
            .iter()
            .map(|(module, text)| (module, Scanner::scan(text)))
            .collect();
        let is_test = |module: &[String]| {
            (1..=module.len()).any(|length| {
                let (name, parent) = (&module[length - 1], module[..length - 1].to_vec());
                read.get(&parent).is_some_and(|of| of.tests.contains(name))
            })
        };
        let mut uses = BTreeMap::new();
        for (module, scanned) in &read {
            let mut used = BTreeMap::new();
            for (inside, path) in &scanned.paths {
                let Some(target) = read_path(&read, module, inside, path) else {
                    continue;
                };
                let is_family = target.starts_with(module) || module.starts_with(&target);
                if !is_family && !is_test(&target) {
                    used.entry(target).or_insert_with(|| path.join("::"));
                }
            }
            if !is_test(module) {
                uses.insert((*module).clone(), used);
            }
        }
        Self(uses)
    }

    /// One circle, the shortest, for each set of modules that lead to each other.
    fn circles(&self) -> Vec<String> {
        let mut shortest: Vec<Vec<&Module>> =
            self.0.keys().filter_map(|m| self.back_to(m)).collect();
        shortest.sort_by_key(Vec::len);
        let mut told = HashSet::new();
        let mut circles = Vec::new();
        for circle in shortest {
            if circle.iter().any(|module| told.contains(module)) {
                continue;
            }
            let steps = circle.iter().zip(circle.iter().cycle().skip(1));
            let steps = steps.map(|(from, to)| {
                let path = &self.0[*from][*to];
                format!("{} -> {} ({path})", from.join("/"), to.join("/"))
            });
            circles.push(steps.collect::<Vec<_>>().join(", "));
            told.extend(circle);
        }
        circles
    }

    /// The shortest way from a module back to itself.
    fn back_to<'a>(&'a self, start: &'a Module) -> Option<Vec<&'a Module>> {
        let mut came_from: HashMap<&Module, &Module> = HashMap::new();
        let mut queue = VecDeque::from([start]);
        while let Some(module) = queue.pop_front() {
            for next in self.0.get(module)?.keys() {
                if next == start {
                    let mut way = vec![module];
                    while let Some(before) = came_from.get(way[way.len() - 1]) {
                        way.push(before);
                    }
                    way.reverse();
                    return Some(way);
                }
                if !came_from.contains_key(next) {
                    came_from.insert(next, module);
                    queue.push_back(next);
                }
            }
        }
        None
    }
}

/// The file that a path leads to, as it is written in a module (and in a module inside its file).
fn read_path(
    files: &BTreeMap<&Module, Scanned>,
    module: &Module,
    inside: &[String],
    path: &Written,
) -> Option<Module> {
    let mut full = absolute(files, module, inside, path, MAX_RE_EXPORTS)?;
    for _ in 0..MAX_RE_EXPORTS {
        let length = (0..=full.len())
            .rev()
            .find(|n| files.contains_key(&full[..*n].to_vec()))?;
        let (file, rest) = full.split_at(length);
        let scanned = &files[&file.to_vec()];
        let imported = rest.first().and_then(|name| scanned.imports.get(name));
        let next =
            imported.and_then(|path| absolute(files, &file.to_vec(), &[], path, MAX_RE_EXPORTS));
        match next {
            Some(mut next) if next != full => {
                next.extend_from_slice(&rest[1..]);
                full = next;
            }
            _ => return Some(file.to_vec()),
        }
    }
    None
}

/// A path from the crate's root on; `None` if it leads to another crate.
fn absolute(
    files: &BTreeMap<&Module, Scanned>,
    module: &Module,
    inside: &[String],
    path: &Written,
    most_imports: usize,
) -> Option<Module> {
    let mut base = [module, inside].concat();
    let mut rest = &path[..];
    match rest.first()?.as_str() {
        "crate" => base.clear(),
        "self" => {}
        "super" => {
            while rest.first().is_some_and(|name| name == "super") {
                base.pop()?;
                rest = &rest[1..];
            }
            return Some([&base, rest].concat());
        }
        first => {
            let child = [&base[..], &[first.to_owned()]].concat();
            if files.contains_key(&child) {
                return Some([&base, rest].concat());
            }
            let imported = files[module].imports.get(first)?;
            let most = most_imports.checked_sub(1)?; // `use http::{self}` leads to itself
            let imported = absolute(files, module, &[], imported, most)?;
            return Some([&imported, &rest[1..]].concat());
        }
    }
    Some([&base, &rest[1..]].concat())
}

/// What a file names.
#[derive(Default)]
struct Scanned {
    /// All paths, with the modules inside the file that they are in.
    paths: Vec<(Vec<String>, Written)>,
    /// What the names that it imports stand for.
    imports: HashMap<String, Written>,
    /// Its modules that are there in tests alone.
    tests: BTreeSet<String>,
}

/// Reads the words of a file. It knows as much of the language as the paths in it need.
struct Scanner {
    words: Vec<String>,
    at: usize,
    found: Scanned,
}

impl Scanner {
    fn scan(text: &str) -> Scanned {
        let mut scanner = Self {
            words: words(text),
            at: 0,
            found: Scanned::default(),
        };
        // The modules inside the file that are open, and how deep they are.
        let (mut open, mut depth): (Vec<(String, usize)>, usize) = (Vec::new(), 0);
        while let Some(word) = scanner.words.get(scanner.at).cloned() {
            match word.as_str() {
                "#" if scanner.is_next(&["#", "[", "cfg", "(", "test", ")", "]"]) => {
                    scanner.at += 7;
                    scanner.skip_item();
                    continue;
                }
                "{" => depth += 1,
                "}" => {
                    depth = depth.saturating_sub(1);
                    open.pop_if(|(_, of)| *of == depth);
                }
                "mod" if scanner.word(2) == "{" => {
                    open.push((scanner.word(1).to_owned(), depth));
                    scanner.at += 2;
                    continue;
                }
                "use" if is_name(scanner.word(1)) || scanner.word(1) == "{" => {
                    scanner.at += 1;
                    let inside = open
                        .iter()
                        .map(|(name, _)| name.clone())
                        .collect::<Vec<_>>();
                    scanner.tree(&inside, &[]);
                    continue;
                }
                name if is_name(name) && scanner.word(1) == "::" && scanner.before() != "::" => {
                    let mut path = vec![word];
                    while scanner.word(1) == "::" && is_name(scanner.word(2)) {
                        path.push(scanner.word(2).to_owned());
                        scanner.at += 2;
                    }
                    let inside = open.iter().map(|(name, _)| name.clone()).collect();
                    scanner.found.paths.push((inside, path));
                }
                _ => {}
            }
            scanner.at += 1;
        }
        scanner.found
    }

    fn word(&self, ahead: usize) -> &str {
        self.words.get(self.at + ahead).map_or("", String::as_str)
    }

    fn before(&self) -> &str {
        self.at.checked_sub(1).map_or("", |at| &self.words[at])
    }

    fn is_next(&self, words: &[&str]) -> bool {
        self.words[self.at..].iter().take(words.len()).eq(words)
    }

    /// Goes on behind the item, field or arm that begins here, and takes note of a module.
    fn skip_item(&mut self) {
        const ITEMS: &[&str] = &[
            "pub", "fn", "async", "unsafe", "impl", "struct", "enum", "trait", "use", "mod",
            "const", "static", "type", "#",
        ];
        let is_item = ITEMS.contains(&self.word(0));
        let mut depth = 0_usize;
        while self.at < self.words.len() {
            match self.word(0) {
                "mod" if depth == 0 && self.word(2) == ";" => {
                    let name = self.word(1).to_owned();
                    self.found.tests.insert(name);
                }
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" if depth == 0 => return, // of what it is in
                "}" if depth == 1 => {
                    self.at += 1;
                    return;
                }
                "}" | ")" | "]" => depth -= 1,
                ";" if depth == 0 => {
                    self.at += 1;
                    return;
                }
                "," if depth == 0 && !is_item => {
                    self.at += 1;
                    return;
                }
                _ => {}
            }
            self.at += 1;
        }
    }

    /// Reads what follows `use`, or an opening brace behind `prefix` in it.
    fn tree(&mut self, inside: &[String], prefix: &[String]) {
        let mut path = prefix.to_vec();
        loop {
            match self.word(0) {
                "::" => self.at += 1,
                "{" => {
                    self.at += 1;
                    while !matches!(self.word(0), "}" | "") {
                        let before = self.at;
                        self.tree(inside, &path);
                        if self.word(0) == "," || self.at == before {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    return;
                }
                "*" => {
                    self.at += 1;
                    self.found.paths.push((inside.to_vec(), path));
                    return;
                }
                name if is_name(name) && name != "as" => {
                    let is_itself = name == "self" && !path.is_empty();
                    if !is_itself {
                        path.push(name.to_owned());
                    }
                    self.at += 1;
                }
                _ => break,
            }
        }
        let mut name = path.last().cloned();
        if self.word(0) == "as" {
            name = Some(self.word(1).to_owned());
            self.at += 2;
        }
        if let Some(name) = name {
            self.found.imports.insert(name, path.clone());
            self.found.paths.push((inside.to_vec(), path));
        } else {
            self.at += 1; // nothing that is known
        }
    }
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Names, `::` and single characters of a text, without its comments, strings and characters.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => length_of_comment(rest),
            '"' => length_of_string(rest),
            '\'' => length_of_character(rest),
            ':' if rest.starts_with("::") => {
                words.push("::".to_owned());
                2
            }
            c if is_part(c) => {
                let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
                let (word, behind) = rest.split_at(end);
                let hashes = behind.len() - behind.trim_start_matches('#').len();
                if matches!(word, "r" | "br" | "cr") && behind[hashes..].starts_with('"') {
                    let close = format!("\"{}", "#".repeat(hashes));
                    let content = end + hashes + 1;
                    let close_at = rest[content..].find(&close).unwrap_or(0);
                    content + close_at + close.len()
                } else {
                    words.push(word.to_owned());
                    end
                }
            }
            c => {
                if !c.is_whitespace() {
                    words.push(c.to_string());
                }
                c.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    words
}

fn length_of_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let step = match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => {
                depth += 1;
                2
            }
            [b'*', b'/', ..] => {
                depth -= 1;
                2
            }
            _ => 1,
        };
        at += step;
        if depth == 0 {
            break;
        }
    }
    at
}

fn length_of_string(text: &str) -> usize {
    let mut is_escaped = false;
    let end = text.char_indices().skip(1).find(|(_, c)| {
        let ends = *c == '"' && !is_escaped;
        is_escaped = *c == '\\' && !is_escaped;
        ends
    });
    end.map_or(text.len(), |(at, _)| at + 1)
}

/// Of a character in quotes; of a lifetime, that of its quote.
fn length_of_character(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some(_)) => {
            let close = chars.find(|(_, c)| *c == '\'');
            close.map_or(text.len(), |(at, _)| at + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}
