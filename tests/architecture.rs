//! Holds the map of the crate: which room may import which, where external crates and `unsafe` live, how long a file is.
//!
//! Reads the syntax, not the text: `use` trees, inline paths (`crate::x::y`, `super::super::x`), and the tokens inside
//! macro calls. A new arrow or a new home needs a line here and a reason in its commit.

use std::{
    fs,
    path::{Path, PathBuf},
};

use syn::visit::{self, Visit};

/// From the bottom up. A room may import rooms of lower rows only: neighbours in a row never import each other.
const LADDER: &[&[&str]] = &[
    &["asset"],
    &["sys"],
    &["net", "telemetry"],
    &["storage"],
    &["catalog"],
    &["health", "control"],
    &["serve", "fill", "steering", "admin"],
    &["config"],
    &["appliance"],
    &["cli"],
    &["main"],
];

/// External crates that one part of the code hides from the rest: crate name, the files or folders that may name it.
/// Test modules inside `src/` may use them too, since what they build is not shipped.
const HOMES: &[(&str, &[&str])] = &[
    ("aws_lc_rs", &["control/keys.rs", "fill/nightly/digests.rs", "net/tls/", "serve/signing/"]),
    ("axum", &["admin/", "cli/demo"]),
    (
        "base64",
        &[
            "admin/guard.rs",
            "control/base64url.rs",
            "net/download.rs",
            "serve/signing/base64url.rs",
            "steering/availability.rs",
        ],
    ),
    ("flate2", &["control/expand.rs", "net/gzip.rs", "steering/tests/"]),
    ("hyper", &["serve/", "admin/", "net/"]),
    ("hyper_rustls", &["net/download.rs"]),
    ("hyper_util", &["serve/", "admin/", "net/"]),
    ("io_uring", &["sys/uring.rs"]),
    ("landlock", &["sys/sandbox.rs"]),
    ("lru", &["catalog/negative.rs"]),
    ("object_store", &["net/bucket.rs"]),
    ("papaya", &["catalog/index.rs"]),
    ("memmap2", &["storage/mapping.rs"]),
    ("prometheus", &["telemetry/metrics.rs"]),
    ("regex", &["serve/signing/container.rs"]),
    ("reqwest", &["net/client.rs", "control/pull.rs", "steering/service.rs", "cli/operator.rs"]),
    ("rusqlite", &["catalog/database.rs"]),
    ("rust_embed", &["cli/", "admin/"]),
    ("rustls", &["net/tls/"]),
    ("rustls_platform_verifier", &["net/tls/"]),
    ("tokio_rustls", &["net/tls/"]),
    ("zstd", &["control/expand.rs"]),
    ("x509_parser", &["net/tls/pair.rs"]),
];

/// The only files with `unsafe`, and why they need it.
const UNSAFE: &[(&str, &str)] = &[
    ("storage/lost_pages.rs", "handles SIGBUS"),
    ("storage/mapping.rs", "maps asset files into memory"),
    ("sys/priority.rs", "sched_setscheduler has no safe interface in a crate we use"),
    ("sys/kernel_tls.rs", "TCP_ULP, SOL_TLS and the type of a record have no safe interface in a crate we use"),
    (
        "sys/socket.rs",
        "TIOCOUTQ, SIOCOUTQNSD, RUSAGE_THREAD and inherited descriptors have no safe interface in a crate we use",
    ),
    ("sys/uring.rs", "hands addresses to the kernel's ring"),
];

/// Lines of one file at most.
const LINES_MAX: usize = 600;

#[test]
fn imports_go_down_and_crates_stay_at_home() {
    let faults: Vec<String> = sources("src")
        .iter()
        .flat_map(|path| {
            let text = fs::read_to_string(path).expect("a source file is readable");
            let inside = path.strip_prefix(root().join("src")).expect("it lies in src");
            faults_of(&inside.to_string_lossy(), &text)
        })
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn files_stay_short() {
    let mut faults = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz"] {
        for path in sources(folder) {
            let lines = fs::read_to_string(&path).expect("a source file is readable").lines().count();
            if lines > LINES_MAX {
                faults.push(format!("{}: {lines} lines, at most {LINES_MAX}", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &str) -> Vec<PathBuf> {
    walkdir::WalkDir::new(root().join(folder))
        .into_iter()
        .filter_entry(|entry| entry.file_name() != "target")
        .filter_map(Result::ok)
        .map(walkdir::DirEntry::into_path)
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// What breaks the rules in one file. `path` is relative to `src/`.
fn faults_of(path: &str, text: &str) -> Vec<String> {
    let syntax = match syn::parse_file(text) {
        Ok(syntax) => syntax,
        Err(error) => return vec![format!("src/{path}: {error}")],
    };
    let mut module: Vec<String> =
        Path::new(path).with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if path == "lib.rs" {
        // The map itself: names every room, holds no logic.
        return Vec::new();
    }
    if module.last().is_some_and(|last| last == "mod") {
        module.pop();
    }
    let room = module[0].clone();
    if row(&room).is_none() {
        return vec![format!("src/{path}: `{room}` has no place on the ladder")];
    }
    let mut reader = Reader { path, room, module, in_tests: 0, faults: Vec::new() };
    reader.visit_file(&syntax);
    reader.faults.sort();
    reader.faults.dedup();
    reader.faults
}

fn row(room: &str) -> Option<usize> {
    LADDER.iter().position(|row| row.contains(&room))
}

struct Reader<'a> {
    path: &'a str,
    room: String,
    /// The module being read, from the crate's root.
    module: Vec<String>,
    /// How many `#[cfg(test)]` items stand around what is being read.
    in_tests: usize,
    faults: Vec<String>,
}

impl Reader<'_> {
    fn fault(&mut self, what: String) {
        self.faults.push(format!("src/{}: {what}", self.path));
    }

    /// Checks one path, given by its segments as written.
    fn check(&mut self, segments: &[String]) {
        let Some(first) = segments.first() else { return };
        match first.as_str() {
            "crate" | "oca" => self.check_room(segments.get(1)),
            "self" | "super" => {
                let mut base = self.module.clone();
                let mut rest = segments;
                while let Some(step) = rest.first() {
                    match step.as_str() {
                        "self" => {}
                        "super" => drop(base.pop()),
                        _ => break,
                    }
                    rest = &rest[1..];
                }
                base.extend(rest.iter().cloned());
                self.check_room(base.first());
            }
            name => self.check_home(name),
        }
    }

    fn check_room(&mut self, target: Option<&String>) {
        let Some(target) = target else { return };
        if *target == self.room {
            return;
        }
        match (row(&self.room), row(target)) {
            (Some(from), Some(to)) if from > to => {}
            (Some(from), Some(to)) if from == to => {
                self.fault(format!("sideways arrow {} > {target}", self.room));
            }
            (Some(_), Some(_)) => self.fault(format!("arrow up {} > {target}", self.room)),
            _ => self.fault(format!("`{target}` has no place on the ladder")),
        }
    }

    fn check_home(&mut self, name: &str) {
        if self.in_tests > 0 {
            return;
        }
        let Some((_, homes)) = HOMES.iter().find(|(known, _)| *known == name) else { return };
        if !homes.iter().any(|home| self.path.starts_with(home)) {
            self.fault(format!("`{name}` is used outside its home ({})", homes.join(", ")));
        }
    }

    fn check_unsafe(&mut self) {
        if !UNSAFE.iter().any(|(home, _)| *home == self.path) {
            self.fault("`unsafe` outside the files that may have it".into());
        }
    }

    fn check_use(&mut self, tree: &syn::UseTree, before: &[String]) {
        let with = |ident: &syn::Ident| {
            let mut path = before.to_vec();
            path.push(ident.to_string());
            path
        };
        match tree {
            syn::UseTree::Path(path) => self.check_use(&path.tree, &with(&path.ident)),
            syn::UseTree::Name(name) => self.check(&with(&name.ident)),
            syn::UseTree::Rename(rename) => self.check(&with(&rename.ident)),
            syn::UseTree::Glob(_) => self.check(before),
            syn::UseTree::Group(group) => group.items.iter().for_each(|tree| self.check_use(tree, before)),
        }
    }

    /// Macro calls are not parsed by `syn`: their paths are found among the tokens.
    fn check_tokens(&mut self, tokens: proc_macro2::TokenStream) {
        use proc_macro2::TokenTree;
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if ident == "unsafe" {
                        self.check_unsafe();
                    }
                    if colons != 2 {
                        self.check(&std::mem::take(&mut path));
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                other => {
                    self.check(&std::mem::take(&mut path));
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.check_tokens(group.stream());
                    }
                }
            }
        }
        self.check(&path);
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test")
    })
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes: &[syn::Attribute] = match item {
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            _ => &[],
        };
        let inside = usize::from(is_test(attributes));
        self.in_tests += inside;
        visit::visit_item(self, item);
        self.in_tests -= inside;
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.check_use(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        // A single name (`lru`, a local) is no path to elsewhere.
        if path.segments.len() > 1 {
            let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.check(&segments);
        }
        visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {
        // `pub(super)` and `pub(in crate::x)` say who may look in, not what is imported.
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.check_tokens(call.tokens.clone());
    }

    fn visit_expr_unsafe(&mut self, expression: &'ast syn::ExprUnsafe) {
        self.check_unsafe();
        visit::visit_expr_unsafe(self, expression);
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        if signature.unsafety.is_some() {
            self.check_unsafe();
        }
        visit::visit_signature(self, signature);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if item.unsafety.is_some() {
            self.check_unsafe();
        }
        visit::visit_item_impl(self, item);
    }

    fn visit_item_foreign_mod(&mut self, item: &'ast syn::ItemForeignMod) {
        self.check_unsafe();
        visit::visit_item_foreign_mod(self, item);
    }
}

/// What the rules say about a snippet, without the file's name.
fn said(path: &str, text: &str) -> String {
    faults_of(path, text).join("; ").replace(&format!("src/{path}: "), "")
}

#[test]
fn what_the_rules_allow_is_allowed() {
    assert_eq!(said("serve/body.rs", "use crate::{asset::ByteRange, catalog::*}; use super::Config;"), "");
    assert_eq!(said("main.rs", "fn main() { oca::cli::run(); }"), "");
    assert_eq!(said("net/mod.rs", "use hyper::body; mod tls { use super::super::sys::Clock; }"), "");
    assert_eq!(said("storage/mapping.rs", "fn f() { unsafe { memmap2::Mmap::map(1) } }"), "");
    assert_eq!(said("catalog/mod.rs", "#[cfg(test)] mod tests { use rusqlite::Connection; }"), "");
    assert_eq!(said("serve/mod.rs", "pub(in crate::serve) fn f(lru: u8) -> u8 { lru }"), "");
}

#[test]
fn an_arrow_up_is_found_however_it_is_written() {
    let up = "arrow up storage > catalog";
    assert_eq!(said("storage/volume.rs", "use crate::catalog::Entry;"), up);
    assert_eq!(said("storage/volume.rs", "use crate::{asset::Digest, catalog};"), up);
    assert_eq!(said("storage/volume.rs", "use crate::catalog::*;"), up);
    assert_eq!(said("storage/volume.rs", "pub use crate::catalog as c;"), up);
    assert_eq!(said("storage/volume.rs", "fn f() { crate::catalog::open(); }"), up);
    assert_eq!(said("storage/volume.rs", "fn f(_: super::super::catalog::Entry) {}"), up);
    assert_eq!(said("storage/mod.rs", "fn f(_: super::catalog::Entry) {}"), up);
    assert_eq!(said("storage/volume.rs", "mod inner { use super::super::super::catalog::Entry; }"), up);
    assert_eq!(said("storage/volume.rs", "fn f() { println!(\"{}\", g(crate::catalog::COUNT)); }"), up);
    assert_eq!(said("storage/volume.rs", "#[cfg(test)] mod tests { use crate::catalog::Entry; }"), up);
    assert_eq!(said("asset/key.rs", "type T = Vec<crate::sys::Clock>;"), "arrow up asset > sys");
}

#[test]
fn an_arrow_sideways_is_found() {
    assert_eq!(said("serve/handler.rs", "use crate::fill::Fetch;"), "sideways arrow serve > fill");
    assert_eq!(said("net/tls.rs", "use crate::telemetry::Metrics;"), "sideways arrow net > telemetry");
}

#[test]
fn a_room_that_is_not_on_the_ladder_is_found() {
    assert_eq!(said("util/mod.rs", ""), "`util` has no place on the ladder");
    assert_eq!(said("serve/body.rs", "use crate::util::x;"), "`util` has no place on the ladder");
}

#[test]
fn a_crate_outside_its_home_is_found() {
    assert_eq!(
        said("storage/volume.rs", "use memmap2::Mmap;"),
        "`memmap2` is used outside its home (storage/mapping.rs)"
    );
    assert!(said("catalog/mod.rs", "fn f() { let _ = rusqlite::Connection::open(1); }").contains("rusqlite"));
    assert!(said("serve/mod.rs", "fn f() { assert!(prometheus::gather().is_empty()); }").contains("prometheus"));
    assert!(said("fill/mod.rs", "use hyper as h;").contains("hyper"));
    assert!(said("serve/mod.rs", "fn f(x: lru::LruCache<u8, u8>) {}").contains("lru"));
}

#[test]
fn unsafe_outside_its_home_is_found() {
    for snippet in [
        "fn f() { unsafe { g() } }",
        "unsafe fn f() {}",
        "unsafe impl Send for X {}",
        "extern \"C\" { fn f(); }",
        "fn f() { m!(unsafe { g() }); }",
    ] {
        assert_eq!(said("serve/body.rs", snippet), "`unsafe` outside the files that may have it", "{snippet}");
    }
}
