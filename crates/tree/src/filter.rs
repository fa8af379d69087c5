//! What is left out of backups: the rules of `_backup.filter` and of an app's configuration.
//!
//! One path a line, relative to the home; the form is in `docs/filter.md`. All rules are looked at together, name by
//! name from the home downwards: a [`Filter`] is a tree of names, an [`At`] the places in it that a folder stands at.
//!
//! Invariants:
//! * An entry that a rule names is left out with all below it; nothing brings a part of it back, but the filter's own
//!   file ([`Filter::never`]), which a restore needs.
//! * Nothing is interpreted twice: names are bytes, a rule that cannot name anything names nothing, and none leads
//!   outside the home.
//! * Hostile rules are bounded: size and number, and a name is compared with a rule in time that grows with their
//!   lengths alone, never with the number of ways in which stars could be filled.
//! * Values only: no I/O, no locks, nothing to be cleaned up after a crash.

mod pattern;
mod rule;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use backstay_model::{Code, Error, Result};

use pattern::Pattern;
pub use rule::Rule;
use rule::{Component, parse_file, parse_line, parse_text};

/// Where the file with the rules may lie in a home, the first one that exists counts.
pub const FILES: [&str; 2] = ["site/wwwroot/_backup.filter", "_backup.filter"];
/// Largest size of the file, in bytes.
pub const SIZE_MAX: usize = 1 << 20;
/// Most lines of the file, comments and empty ones too.
pub const LINES_MAX: usize = 100_000;
/// Most rules with `*` or `?`.
pub const PATTERNS_MAX: usize = 2_000;

/// Rules that say what is left out.
#[derive(Clone, Debug)]
pub struct Filter {
    rules: Vec<Rule>,
    /// The first is the home.
    nodes: Vec<Node>,
    /// Paths that are never left out, by their names.
    never: Vec<Vec<Vec<u8>>>,
}

/// A place in the tree of names that rules are made of.
#[derive(Clone, Debug, Default)]
struct Node {
    /// Sorted.
    names: Vec<(Vec<u8>, usize)>,
    /// Sorted by the byte they end with, those that end with a star or question mark first.
    patterns: Vec<(Pattern, usize)>,
    /// The place of a `**` that follows here.
    any_depth: Option<usize>,
    /// Whether this is the place of a `**`: it is left by no name.
    stays: bool,
    /// Rules that end here.
    rules: Vec<usize>,
}

/// Where a folder stands in a [`Filter`].
#[derive(Clone, Debug, Default)]
pub struct At {
    nodes: Vec<usize>,
    /// The rule that leaves out all here but what is on the way to a path that never is.
    out: Option<usize>,
    /// Which of those paths lead through here.
    way: Vec<usize>,
    depth: usize,
}

impl At {
    /// Whether no rule can name anything below: there is no need to ask.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.nodes.is_empty() && self.out.is_none()
    }
}

/// What a filter says about an entry.
#[derive(Clone, Debug)]
pub enum Step {
    /// It stays in; what is below a folder is to be asked about from there.
    Inside(At),
    /// The rule of that number leaves it out.
    LeftOut(usize),
}

/// Which rules have named something, and how much was left out. Shared by threads.
#[derive(Debug)]
pub struct Hits {
    rules: Vec<AtomicBool>,
    /// Places below which nothing is looked at any more.
    covered: Vec<AtomicBool>,
    left_out: AtomicU64,
}

impl Hits {
    /// For the rules of a filter.
    #[must_use]
    pub fn new(filter: &Filter) -> Self {
        let flags = |n: usize| (0..n).map(|_| AtomicBool::new(false)).collect();
        Hits {
            rules: flags(filter.rules.len()),
            covered: flags(filter.nodes.len()),
            left_out: AtomicU64::new(0),
        }
    }

    /// Entries that were left out; a folder counts as one, with all below it.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// The rules that named nothing, by their numbers. Rules for what lies below something that was left out are not
    /// among them: nobody looked there.
    #[must_use]
    pub fn unmatched(&self) -> Vec<usize> {
        let named = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        self.rules.iter().enumerate().filter(|(_, flag)| !named(flag)).map(|(n, _)| n).collect()
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self::build(Vec::new(), Vec::new())
    }
}

impl Filter {
    /// A filter that leaves nothing out.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the content of a file of rules. `LimitExceeded` when it is larger than rules are.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        Self::checked(parse_file(bytes)?, 1)
    }

    /// Takes rules from somewhere else, each written as a line of the file would be.
    pub fn from_lines<S: AsRef<str>>(lines: &[S]) -> Result<Self> {
        if lines.len() > LINES_MAX {
            return Err(too_large(format!("{} rules, at most {LINES_MAX} are taken", lines.len())));
        }
        Self::checked(lines.iter().filter_map(|l| parse_line(l.as_ref().as_bytes(), None)).collect(), 1)
    }

    /// Reads rules that [`Rule::text`] gave, those of a file and of a configuration together. What it would not have given
    /// names nothing.
    pub fn from_texts<S: AsRef<str>>(texts: &[S]) -> Result<Self> {
        if texts.len() > LINES_MAX * 2 {
            return Err(too_large(format!("{} rules, at most {LINES_MAX} are taken", texts.len())));
        }
        Self::checked(texts.iter().filter_map(|text| parse_text(text.as_ref())).collect(), 2)
    }

    /// The rules of both.
    #[must_use]
    pub fn union(&self, other: &Filter) -> Filter {
        let rules = self.rules.iter().chain(&other.rules).cloned().collect();
        Self::build(rules, self.never.iter().chain(&other.never).cloned().collect())
    }

    /// Makes sure that a path is never left out, whatever the rules say: the file with the rules itself. What else
    /// lies in the folders on the way to it follows the rules.
    #[must_use]
    pub fn never(mut self, path: &Path) -> Self {
        let names = path.iter().map(|name| name.as_bytes().to_vec()).collect();
        self.never.push(names);
        self
    }

    /// The paths that are never left out.
    #[must_use]
    pub fn never_paths(&self) -> Vec<PathBuf> {
        let path = |names: &Vec<Vec<u8>>| names.iter().map(|n| OsStr::from_bytes(n)).collect();
        self.never.iter().map(path).collect()
    }

    /// Whether there are no rules.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules in their order; their positions are their numbers.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// `sources` is how many files the rules may come from.
    fn checked(rules: Vec<Rule>, sources: usize) -> Result<Self> {
        let patterns = rules.iter().filter(|r| r.components.iter().any(|c| !c.is_name())).count();
        if patterns > PATTERNS_MAX * sources {
            let much = format!("{patterns} rules with * or ?, at most {PATTERNS_MAX} are taken");
            return Err(too_large(much));
        }
        Ok(Self::build(rules, Vec::new()))
    }

    fn build(rules: Vec<Rule>, never: Vec<Vec<Vec<u8>>>) -> Self {
        // Sorted, rules that begin alike follow each other: what a rule shares with others is where the last one went.
        let mut order: Vec<usize> = (0..rules.len()).collect();
        order.sort_by_key(|n| rules.get(*n).map(|r| &r.components));
        let mut filter = Filter { rules: Vec::new(), nodes: vec![Node::default()], never };
        for number in order {
            let components = rules.get(number).map_or(&[][..], |r| &r.components);
            if components.is_empty() {
                continue;
            }
            let end = components.iter().fold(0, |at, component| filter.follow(at, component));
            if let Some(node) = filter.nodes.get_mut(end) {
                node.rules.push(number);
            }
        }
        for node in &mut filter.nodes {
            node.patterns.sort_by_key(|(pattern, _)| pattern.last_byte());
        }
        filter.rules = rules;
        filter
    }

    /// The place that a component of a rule leads to; made where there is none.
    fn follow(&mut self, at: usize, component: &Component) -> usize {
        let new = self.nodes.len();
        let Some(node) = self.nodes.get_mut(at) else { return 0 };
        let next = match component {
            Component::Name(name) => match node.names.last() {
                Some((last, next)) if last == name => *next,
                _ => {
                    node.names.push((name.clone(), new));
                    new
                }
            },
            Component::Pattern(pattern) => match node.patterns.last() {
                Some((last, next)) if last == pattern => *next,
                _ => {
                    node.patterns.push((pattern.clone(), new));
                    new
                }
            },
            Component::AnyDepth => *node.any_depth.get_or_insert(new),
        };
        if next == new {
            let stays = matches!(component, Component::AnyDepth);
            self.nodes.push(Node { stays, ..Node::default() });
        }
        next
    }

    // --- asking

    /// Where the home stands.
    #[must_use]
    pub fn home(&self) -> At {
        let mut nodes = Vec::new();
        if !self.is_empty() {
            self.arrive(0, &mut nodes);
        }
        At { nodes, out: None, way: (0..self.never.len()).collect(), depth: 0 }
    }

    /// What the filter says about the entry `name` of a folder; `hits` takes note of the rules that name it.
    #[must_use]
    pub fn enter(&self, at: &At, name: &OsStr, hits: Option<&Hits>) -> Step {
        let mut nodes = Vec::new();
        self.advance(&at.nodes, name.as_bytes(), &mut nodes);
        let named = self.rule_at(&nodes);
        let way: Vec<usize> = at.way.iter().copied().filter(|n| self.is_way(*n, at.depth, name)).collect();
        let rule = at.out.or(named);
        if let Some(hits) = hits {
            self.note(&nodes, named.is_some(), hits);
        }
        match rule {
            Some(rule) if way.is_empty() => {
                hits.iter().for_each(|h| {
                    h.left_out.fetch_add(1, Ordering::Relaxed);
                });
                Step::LeftOut(rule)
            }
            out => Step::Inside(At { nodes, out, way, depth: at.depth + 1 }),
        }
    }

    /// The rule that leaves out the entry at a path relative to the home, or a folder above it.
    #[must_use]
    pub fn matches(&self, path: &Path) -> Option<usize> {
        if self.is_empty() {
            return None;
        }
        let mut at = self.home();
        let mut nodes = Vec::new();
        for name in path.iter() {
            nodes.clear();
            self.advance(&at.nodes, name.as_bytes(), &mut nodes);
            std::mem::swap(&mut at.nodes, &mut nodes);
            at.out = at.out.or_else(|| self.rule_at(&at.nodes));
            let depth = at.depth;
            at.way.retain(|n| self.is_way(*n, depth, name));
            at.depth += 1;
            if at.is_idle() || (at.out.is_some() && at.way.is_empty()) {
                break;
            }
        }
        at.out.filter(|_| at.way.is_empty())
    }

    /// Whether something below the folder at `path` may be left out, or all of it is.
    #[must_use]
    pub fn may_match_below(&self, path: &Path) -> bool {
        let mut at = self.home();
        for name in path.iter() {
            match self.enter(&at, name, None) {
                Step::Inside(next) => at = next,
                Step::LeftOut(_) => return true,
            }
        }
        let leads_on = |node: &Node| node.stays || !node.names.is_empty() || !node.patterns.is_empty();
        at.out.is_some() || at.nodes.iter().filter_map(|n| self.nodes.get(*n)).any(leads_on)
    }

    /// The places that a name leads to from others, sorted.
    fn advance(&self, from: &[usize], name: &[u8], to: &mut Vec<usize>) {
        for number in from {
            let Some(node) = self.nodes.get(*number) else { continue };
            if node.stays {
                to.push(*number);
            }
            if let Ok(found) = node.names.binary_search_by(|(n, _)| n.as_slice().cmp(name))
                && let Some((_, next)) = node.names.get(found)
            {
                self.arrive(*next, to);
            }
            for ends_with in [None, name.last().copied()] {
                let begin = node.patterns.partition_point(|(pattern, _)| pattern.last_byte() < ends_with);
                let like = node.patterns.iter().skip(begin);
                for (pattern, next) in like.take_while(|(pattern, _)| pattern.last_byte() == ends_with) {
                    if pattern.matches(name) {
                        self.arrive(*next, to);
                    }
                }
            }
        }
        if to.len() > 1 {
            to.sort_unstable();
            to.dedup();
        }
    }

    /// A place, and that of a `**` which follows it, since that may stand for nothing.
    fn arrive(&self, number: usize, to: &mut Vec<usize>) {
        to.push(number);
        to.extend(self.nodes.get(number).and_then(|node| node.any_depth));
    }

    /// The first rule that ends at one of the places.
    fn rule_at(&self, nodes: &[usize]) -> Option<usize> {
        nodes.iter().filter_map(|n| self.nodes.get(*n)?.rules.first().copied()).min()
    }

    fn is_way(&self, never: usize, depth: usize, name: &OsStr) -> bool {
        self.never.get(never).and_then(|names| names.get(depth)).is_some_and(|n| n == name.as_bytes())
    }

    /// Takes note of rules that name an entry, and when it is left out, of those for what is below it.
    fn note(&self, nodes: &[usize], left_out: bool, hits: &Hits) {
        let set = |flags: &[AtomicBool], n: usize| {
            flags
                .get(n)
                .is_some_and(|flag| !flag.load(Ordering::Relaxed) && !flag.swap(true, Ordering::Relaxed))
        };
        let mut below = Vec::new();
        for (number, node) in nodes.iter().filter_map(|n| Some((*n, self.nodes.get(*n)?))) {
            for rule in &node.rules {
                set(&hits.rules, *rule);
            }
            // A `**` goes on beside what is left out.
            if left_out && !node.stays {
                below.push(number);
            }
        }
        while let Some(number) = below.pop() {
            if !set(&hits.covered, number) {
                continue;
            }
            let Some(node) = self.nodes.get(number) else { continue };
            for rule in &node.rules {
                set(&hits.rules, *rule);
            }
            below.extend(node.names.iter().map(|(_, next)| *next));
            below.extend(node.patterns.iter().map(|(_, next)| *next));
            below.extend(node.any_depth);
        }
    }
}

fn too_large(much: String) -> Error {
    Error::new(Code::LimitExceeded, format!("The filter has {much}"))
        .advise("Name folders instead of what is in them, or use patterns. See docs/filter.md.")
}
