//! Filters: the form of the lines, against a naive matcher, hostile ones, and their speed.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backstay_model::Code;
use backstay_tree::filter::{Filter, Hits, LINES_MAX, PATTERNS_MAX, SIZE_MAX, Step};
use proptest::prelude::*;

fn filter(text: &str) -> Filter {
    Filter::parse(text.as_bytes()).unwrap()
}

fn named(rules: &str, path: &str) -> bool {
    filter(rules).matches(Path::new(path)).is_some()
}

#[test]
fn the_form_of_the_original_service() {
    let rules = "\\site\\wwwroot\\Images\\brand.png\r\n\\site\\wwwroot\\Images\\2014\r\n\\site\\wwwroot\\Images\\2013";
    for path in [
        "site/wwwroot/Images/brand.png",
        "site/wwwroot/Images/2014",
        "site/wwwroot/Images/2014/may/1.png",
        "site/wwwroot/Images/2013/x",
    ] {
        assert!(named(rules, path), "{path}");
    }
    for path in [
        "site",
        "site/wwwroot/Images",
        "site/wwwroot/Images/brand.png.bak",
        "site/wwwroot/Images/201",
        "site/wwwroot/Images/20140",
        "wwwroot/Images/2014",
        "site/wwwroot/images/2014",
        "x/site/wwwroot/Images/2014",
    ] {
        assert!(!named(rules, path), "{path}");
    }
}

#[test]
fn all_ways_to_write_a_path_mean_the_same() {
    for line in [
        "logs/old",
        "/logs/old",
        "\\logs\\old",
        "logs\\old",
        "./logs/old",
        "//logs//old/",
        " logs/old \t",
        "logs/./old",
    ] {
        assert!(named(line, "logs/old") && named(line, "logs/old/1"), "{line}");
        assert!(!named(line, "logs") && !named(line, "logs/older"), "{line}");
    }
}

#[test]
fn stars_and_question_marks() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        (
            "logs/*.log",
            &["logs/a.log", "logs/.log", "logs/a.log/x"],
            &["logs/a.txt", "logs/x/a.log", "a.log"],
        ),
        ("**/*.log", &["a.log", "x/y/a.log"], &["a.log2"]),
        ("**/cache", &["cache", "a/cache/b", "a/b/cache"], &["cached", "a/xcache"]),
        ("a/**/b", &["a/b", "a/x/b", "a/x/y/b/z"], &["b", "a", "a/x", "x/a/b"]),
        ("logs/**", &["logs/a", "logs/a/b"], &["logs", "log"]),
        ("**", &["a", "a/b"], &[]),
        ("a/**/**/b", &["a/b", "a/x/y/b"], &["a/x"]),
        ("?.txt", &["a.txt", "\u{e4}.txt", "\u{1f600}.txt"], &["ab.txt", ".txt"]),
        ("a?c", &["abc"], &["ac", "a/c", "abbc"]),
        ("*", &["a", "a/b", ".hidden"], &[]),
        ("a*b*c", &["abc", "aXbYc", "abbcc", "a/x/abc/../abc"], &["ab", "acb", "abcd"]),
        ("a**b", &["ab", "axxb"], &["a/b", "a/x/b"]),
        ("*/x", &["a/x"], &["x", "a/b/x"]),
        ("**/a/**/z", &["a/z", "q/a/b/z", "a/a/z"], &["z", "a"]),
    ];
    for (rule, inside, outside) in cases {
        for path in inside.iter().filter(|p| !p.contains("..")) {
            assert!(named(rule, path), "{rule} must name {path}");
        }
        for path in *outside {
            assert!(!named(rule, path), "{rule} must not name {path}");
        }
    }
}

#[test]
fn comments_escapes_and_what_needs_none() {
    let rules = "# a comment\n   # another\n\n  \n[#]tag\n/#hash\n!bang\nq[?]\n[*].txt\n[[]*]\nb[\\]s\n[ ]lead\ntail[ ]\n[id].js\n[...all]\n";
    let filter = filter(rules);
    for path in
        ["#tag", "#hash", "!bang", "q?", "*.txt", "[*]", "b\\s", " lead", "tail ", "[id].js", "[...all]"]
    {
        assert!(filter.matches(Path::new(path)).is_some(), "{path}");
    }
    for path in ["tag", "bang", "qx", "x.txt", "[x]", "b/s", "lead", "tail", "i.js", "a"] {
        // `[[]*]` is the name `[*]` with a star: `[` anything `]`.
        let star = path == "[x]";
        assert_eq!(filter.matches(Path::new(path)).is_some(), star, "{path}");
    }
    let lines: Vec<_> = filter.rules().iter().map(|r| (r.line.unwrap(), r.text.as_str())).collect();
    assert_eq!(lines[..3], [(5, "/[#]tag"), (6, "/#hash"), (7, "/!bang")]);
}

#[test]
fn marks_of_editors_do_not_matter() {
    let plain = "logs\nt\u{e4}g\n";
    let wide = |big: bool| {
        let units = plain.encode_utf16().flat_map(|u| if big { u.to_be_bytes() } else { u.to_le_bytes() });
        [if big { [0xfe, 0xff] } else { [0xff, 0xfe] }.to_vec(), units.collect()].concat()
    };
    for bytes in [
        plain.as_bytes().to_vec(),
        [b"\xef\xbb\xbf", plain.as_bytes()].concat(),
        plain.replace('\n', "\r\n").into_bytes(),
        plain.trim_end().as_bytes().to_vec(),
        wide(false),
        wide(true),
    ] {
        let filter = Filter::parse(&bytes).unwrap();
        assert!(
            filter.matches(Path::new("logs")).is_some() && filter.matches(Path::new("t\u{e4}g/x")).is_some()
        );
        assert_eq!(filter.rules().len(), 2);
    }
}

#[test]
fn what_can_name_nothing_names_nothing_and_is_told() {
    let rules = "/\n.\n..\n../secret\na/../b\n%HOME%\\logs\nD:\\home\\logs\nnul\0\nlogs\n";
    let filter = filter(rules);
    let hits = Hits::new(&filter);
    for path in ["a", "b", "secret", "logs/x"] {
        let _walked = walk(&filter, Path::new(path), &hits);
    }
    assert!(filter.matches(Path::new("b")).is_none() && filter.matches(Path::new("secret")).is_none());
    let told: Vec<u32> = hits.unmatched().iter().map(|n| filter.rules()[*n].line.unwrap()).collect();
    assert_eq!(told, [1, 2, 3, 4, 5, 6, 7, 8]);
}

/// Goes down to a path as a walk does.
fn walk(filter: &Filter, path: &Path, hits: &Hits) -> Option<usize> {
    let mut at = filter.home();
    for name in path {
        match filter.enter(&at, name, Some(hits)) {
            Step::Inside(next) => at = next,
            Step::LeftOut(rule) => return Some(rule),
        }
    }
    None
}

#[test]
fn rules_below_what_is_left_out_are_not_told_as_naming_nothing() {
    let filter = filter("logs\nlogs/old\nlogs/**/x\nlo*/y\n**/tmp\nlog\n");
    let hits = Hits::new(&filter);
    assert_eq!(walk(&filter, Path::new("logs/old/x"), &hits), Some(0));
    assert_eq!(hits.unmatched(), [4, 5]);
    assert_eq!(hits.left_out(), 1);
    assert_eq!(walk(&filter, Path::new("a/tmp"), &hits), Some(4));
    assert_eq!(hits.unmatched(), [5]);
    assert_eq!(hits.left_out(), 2);
    // Several rules for one entry: all have named it.
    let twice = Filter::from_lines(&["a/b", "*/b", "a/b"]).unwrap();
    let hits = Hits::new(&twice);
    assert_eq!(walk(&twice, Path::new("a/b"), &hits), Some(0));
    assert_eq!(hits.unmatched(), Vec::<usize>::new());
}

#[test]
fn the_file_with_the_rules_is_never_left_out() {
    let own = Path::new("site/wwwroot/_backup.filter");
    for rules in ["site", "site/wwwroot/*", "**", "site/wwwroot/_backup.filter", "*"] {
        let filter = filter(rules).never(own);
        assert_eq!(filter.matches(own), None, "{rules}");
        assert_eq!(walk(&filter, own, &Hits::new(&filter)), None, "{rules}");
        assert_eq!(filter.never_paths(), [own]);
    }
    let filter = filter("site").never(own);
    for path in
        ["site/other", "site/wwwroot/index.html", "site/wwwroot/_backup.filter2", "site/x/_backup.filter"]
    {
        assert_eq!(filter.matches(Path::new(path)), Some(0), "{path}");
        assert_eq!(walk(&filter, Path::new(path), &Hits::new(&filter)), Some(0), "{path}");
    }
    assert_eq!(filter.matches(Path::new("site/wwwroot")), None);
    assert!(filter.may_match_below(Path::new("site/wwwroot")));
}

#[test]
fn both_of_two_filters_count() {
    let target = filter("logs\n").never(Path::new("_backup.filter"));
    let point = filter("media\n");
    let both = target.union(&point);
    for (path, rule) in
        [("logs/x", Some(0)), ("media", Some(1)), ("index.html", None), ("_backup.filter", None)]
    {
        assert_eq!(both.matches(Path::new(path)), rule, "{path}");
    }
    assert_eq!(both.rules().len(), 2);
    assert!(Filter::new().union(&Filter::new()).is_empty());
}

#[test]
fn a_folder_knows_whether_anything_below_it_may_be_left_out() {
    let filter = filter("a/b/c\nx/*\n");
    for (path, may) in [
        ("", true),
        ("a", true),
        ("a/b", true),
        ("a/b/c", true),
        ("a/b/c/d", true),
        ("a/z", false),
        ("x", true),
        ("y", false),
    ] {
        assert_eq!(filter.may_match_below(Path::new(path)), may, "{path}");
    }
    assert!(!Filter::new().may_match_below(Path::new("")));
    assert!(Filter::from_lines(&["**/k"]).unwrap().may_match_below(Path::new("q/r/s")));
}

#[test]
fn names_are_bytes() {
    let long = "n".repeat(255);
    let bytes = [b"\xff\xfe\x80/".as_slice(), long.as_bytes(), b"\n\x80?\nA\n"].concat();
    let filter = Filter::parse(&bytes[..]).unwrap();
    // It begins like UTF-16, so it is read as that: a file in Latin-1 needs another first byte.
    assert!(filter.matches(Path::new(OsStr::from_bytes(b"\x80x"))).is_none());
    let filter = Filter::parse(&bytes[2..]).unwrap();
    let path = PathBuf::from(OsString::from_vec([b"\x80/".as_slice(), long.as_bytes()].concat()));
    assert!(filter.matches(&path).is_some());
    assert!(filter.matches(Path::new(OsStr::from_bytes(b"\x80\xff"))).is_some());
    assert!(filter.matches(Path::new(OsStr::from_bytes(b"\x80\xff\xff"))).is_none());
    assert!(filter.matches(Path::new("A")).is_some() && filter.matches(Path::new("a")).is_none());
    // And as text they are the same rules.
    let texts: Vec<String> = filter.rules().iter().map(|r| r.text.clone()).collect();
    assert!(texts.iter().all(|t| t.chars().all(|c| !c.is_control())), "{texts:?}");
    assert!(Filter::from_texts(&texts).unwrap().matches(&path).is_some());
}

#[test]
fn too_much_is_refused_and_the_most_that_is_taken_is_fast() {
    let refused = |bytes: &[u8]| {
        let error = Filter::parse(bytes).unwrap_err();
        assert_eq!(error.code(), Code::LimitExceeded);
        error.to_string()
    };
    assert!(refused(&vec![b'a'; SIZE_MAX + 1]).contains("bytes"));
    assert!(refused("\n".repeat(LINES_MAX + 1).as_bytes()).contains("lines"));
    assert!(refused("*a\n".repeat(PATTERNS_MAX + 1).as_bytes()).contains("rules with"));
    let begun = Instant::now();
    Filter::parse(&vec![b'a'; SIZE_MAX]).unwrap();
    Filter::parse("a/".repeat(SIZE_MAX / 2).as_bytes()).unwrap();
    let many: String = (0..LINES_MAX).rev().map(|n| format!("{n}\n")).collect();
    let many = Filter::parse(many.as_bytes()).unwrap();
    assert!(many.matches(Path::new("77777/x")).is_some());
    // The classic trap: a star can be filled in so many ways.
    let stars = format!("{}b", "*a".repeat(100));
    let trap = Filter::parse(format!("{stars}\n").repeat(PATTERNS_MAX).as_bytes()).unwrap();
    assert!(trap.matches(Path::new(&"a".repeat(255))).is_none());
    let deep = Filter::parse("**/a/".repeat(100).as_bytes()).unwrap();
    assert!(deep.matches(Path::new(&"a/".repeat(99))).is_none());
    assert!(deep.matches(Path::new(&"a/".repeat(100))).is_some());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

// --- against a naive matcher

/// A rule's names, from its line, in the plain way. The generator writes no brackets that escape.
fn split(line: &str) -> Vec<String> {
    line.replace('\\', "/").split('/').filter(|n| !n.is_empty() && *n != ".").map(str::to_owned).collect()
}

fn name_fits(pattern: &[char], name: &[char]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some(('*', rest)) => (0..=name.len()).any(|n| name_fits(rest, &name[n..])),
        Some(('?', rest)) => !name.is_empty() && name_fits(rest, &name[1..]),
        Some((c, rest)) => name.first() == Some(c) && name_fits(rest, &name[1..]),
    }
}

fn names_fit(rule: &[String], path: &[String]) -> bool {
    match rule.split_first() {
        None => path.is_empty(),
        Some((first, [])) if first == "**" => !path.is_empty(),
        Some((first, rest)) if first == "**" => {
            // At the end, a second one after it asks for one name at least.
            (0..=path.len()).any(|n| names_fit(rest, &path[n..]))
        }
        Some((first, rest)) => {
            let chars = |s: &str| s.chars().collect::<Vec<_>>();
            !path.is_empty() && name_fits(&chars(first), &chars(&path[0])) && names_fit(rest, &path[1..])
        }
    }
}

fn naive(lines: &[String], path: &[String]) -> Option<usize> {
    for depth in 1..=path.len() {
        let fits = |line: &String| {
            let rule = split(line);
            !rule.is_empty() && !rule.iter().any(|n| n == "..") && names_fit(&rule, &path[..depth])
        };
        if let Some(first) = lines.iter().position(fits) {
            return Some(first);
        }
    }
    None
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[ab]{1,3}",
        1 => "[ab\u{e4}]{1,2}\\.[ab]",
        1 => Just("..a".to_owned()),
    ]
}

fn part() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => name(),
        3 => "[ab*?\u{e4}]{1,5}",
        2 => Just("**".to_owned()),
        1 => Just("*".to_owned()),
        1 => Just(".".to_owned()),
    ]
}

fn line() -> impl Strategy<Value = String> {
    (prop::collection::vec((part(), "[/\\\\]"), 1..5), any::<bool>()).prop_map(|(parts, lead)| {
        let body: String = parts.iter().map(|(part, separator)| format!("{separator}{part}")).collect();
        if lead { body } else { body[1..].to_owned() }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn as_a_naive_matcher_says(
        lines in prop::collection::vec(line(), 1..7),
        paths in prop::collection::vec(prop::collection::vec(name(), 1..6), 1..12),
    ) {
        let filter = Filter::parse(lines.join("\n").as_bytes()).unwrap();
        prop_assert_eq!(filter.rules().len(), lines.len());
        let texts: Vec<_> = filter.rules().iter().map(|r| r.text.clone()).collect();
        let again = Filter::from_texts(&texts).unwrap();
        let hits = Hits::new(&filter);
        for names in &paths {
            let path: PathBuf = names.iter().collect();
            let expected = naive(&lines, names);
            prop_assert_eq!(filter.matches(&path), expected, "{:?}", path);
            prop_assert_eq!(again.matches(&path), expected, "{:?} as text", path);
            prop_assert_eq!(walk(&filter, &path, &hits), expected, "{:?} walked", path);
            if expected.is_some() {
                for above in path.ancestors().skip(1) {
                    prop_assert!(filter.may_match_below(above), "{:?} above {:?}", above, path);
                }
            }
        }
        // A rule that is told as naming nothing names none of them.
        for n in hits.unmatched() {
            let alone = std::slice::from_ref(&lines[n]);
            prop_assert!(paths.iter().all(|p| naive(alone, p).is_none() || naive(&lines, p).is_some()));
        }
        if filter.rules().iter().all(|r| r.text != "/") {
            let named = |n: usize| paths.iter().any(|p| naive(&lines, p) == Some(n));
            prop_assert!(hits.unmatched().iter().all(|n| !named(*n)));
        }
    }

    #[test]
    fn any_bytes_are_read_and_recorded(bytes in prop::collection::vec(any::<u8>(), 0..400), path in prop::collection::vec(1u8.., 1..60)) {
        let filter = Filter::parse(&bytes).unwrap();
        let path = PathBuf::from(OsString::from_vec(path));
        let texts: Vec<_> = filter.rules().iter().map(|r| r.text.clone()).collect();
        let again = Filter::from_texts(&texts).unwrap();
        prop_assert_eq!(again.rules().len(), texts.len());
        if path.is_relative() {
            prop_assert_eq!(again.matches(&path), filter.matches(&path));
        }
    }

    #[test]
    fn lines_of_odd_characters_too(bytes in "[ab*?#\\[\\]\\\\/ .\r\n\t!\u{e4}]{0,80}", path in "[ab*?#\\[\\] !\u{e4}]{1,6}(/[ab*?#\\[\\]\\\\ .!]{1,4}){0,3}") {
        let filter = Filter::parse(bytes.as_bytes()).unwrap();
        let texts: Vec<_> = filter.rules().iter().map(|r| r.text.clone()).collect();
        let again = Filter::from_texts(&texts).unwrap();
        let recorded: Vec<_> = again.rules().iter().map(|r| r.text.clone()).collect();
        prop_assert_eq!(recorded, texts);
        prop_assert_eq!(again.matches(Path::new(&path)), filter.matches(Path::new(&path)));
    }
}

/// With `--release --nocapture` this prints what docs/benchmarks.md says.
#[test]
fn fifty_thousand_paths_and_two_hundred_rules() {
    let paths: Vec<PathBuf> = (0..50_000)
        .map(|n| PathBuf::from(format!("site/wwwroot/app{}/lib/module{}/file{n}.js", n % 50, n % 997)))
        .collect();
    type Rule = fn(usize) -> String;
    let names: Rule = |n| format!("/site/wwwroot/app{}/lib/module{}", n * 3, n);
    let patterns: Rule = |n| format!("/site/wwwroot/app*/lib/mod?le{n}/*.map");
    let anywhere: Rule = |n| format!("**/*.x{n}");
    for (kind, rule) in [("names", names), ("patterns", patterns), ("patterns anywhere", anywhere)] {
        let lines: Vec<String> = (0..200).map(rule).collect();
        let filter = Filter::from_lines(&lines).unwrap();
        let begun = Instant::now();
        let named = paths.iter().filter(|p| filter.matches(p).is_some()).count();
        println!("{kind}: {:?} for 50,000 paths, {named} left out", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}
