//! Finds a fragment in a function, and writes the function with all its mutants.
//!
//! A fragment is text, but it must be exactly one expression or one statement of the syntax tree:
//! `a + b` inside `a + b * c` is neither, and replacing it would change more than it says. Because
//! fragments are nodes of one tree, two of them are apart, or one is inside the other, or they are
//! the same; all three work together. What stands outside of functions (constants, patterns, types) is
//! fixed when the program is compiled, before anybody could pick a mutant: seed the place where it is used.

use std::collections::BTreeMap;
use std::ops::Range;

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::registry::Seed;

/// Why a fragment cannot be replaced.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file is no Rust.
    #[error("{file}: {what}")]
    Parse {
        /// The file.
        file: String,
        /// What the parser said.
        what: String,
    },
    /// A mutant's place cannot be found, or is not what it must be.
    #[error("mutant `{name}`: {file}, function `{function}`, fragment `{find}`: {what}")]
    Place {
        /// The mutant.
        name: String,
        /// Its file.
        file: String,
        /// Its function.
        function: String,
        /// Its fragment.
        find: String,
        /// What is wrong.
        what: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Expression,
    Statement,
}

/// The functions of a file by name, each with the nodes that may be replaced.
#[derive(Default)]
struct Functions {
    path: Vec<String>,
    found: BTreeMap<String, Vec<Function>>,
    nodes: Vec<(Range<usize>, Node)>,
}

struct Function {
    body: Range<usize>,
    nodes: Vec<(Range<usize>, Node)>,
}

impl Functions {
    fn function(&mut self, name: &syn::Ident, block: &syn::Block) {
        self.path.push(name.to_string());
        let outside = std::mem::take(&mut self.nodes);
        visit::visit_block(self, block);
        let nodes = std::mem::replace(&mut self.nodes, outside);
        let body = block.span().byte_range();
        self.found.entry(self.path.join("::")).or_default().push(Function { body, nodes });
        self.path.pop();
    }

    fn within(&mut self, name: String, visit: impl FnOnce(&mut Self)) {
        self.path.push(name);
        visit(self);
        self.path.pop();
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|a| {
        a.path().is_ident("cfg") && a.parse_args::<syn::Ident>().is_ok_and(|what| what == "test")
    })
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if !is_test(&module.attrs) {
            self.within(module.ident.to_string(), |this| visit::visit_item_mod(this, module));
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let name = match &*item.self_ty {
            syn::Type::Path(path) => path.path.segments.last().map(|last| last.ident.to_string()),
            syn::Type::Reference(reference) => match &*reference.elem {
                syn::Type::Path(path) => path.path.segments.last().map(|s| s.ident.to_string()),
                _ => None,
            },
            _ => None,
        };
        self.within(name.unwrap_or_default(), |this| visit::visit_item_impl(this, item));
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.within(item.ident.to_string(), |this| visit::visit_item_trait(this, item));
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig.ident, &item.block);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.function(&item.sig.ident, &item.block);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.sig.ident, block);
        }
    }

    fn visit_expr(&mut self, expression: &'ast syn::Expr) {
        self.nodes.push((expression.span().byte_range(), Node::Expression));
        visit::visit_expr(self, expression);
    }

    fn visit_stmt(&mut self, statement: &'ast syn::Stmt) {
        // A `let` cannot be put into a branch, unless nothing is named by it.
        let nameless =
            |local: &syn::Local| matches!(local.pat, syn::Pat::Wild(_)) && local.init.is_some();
        let replaceable = match statement {
            syn::Stmt::Expr(..) | syn::Stmt::Macro(_) => true,
            syn::Stmt::Local(local) => nameless(local),
            syn::Stmt::Item(_) => false,
        };
        if replaceable {
            self.nodes.push((statement.span().byte_range(), Node::Statement));
        }
        visit::visit_stmt(self, statement);
    }

    // Patterns, types and constants inside of functions are fixed when they are compiled.
    fn visit_pat(&mut self, _: &'ast syn::Pat) {}
    fn visit_type(&mut self, _: &'ast syn::Type) {}
    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}
    fn visit_item_static(&mut self, _: &'ast syn::ItemStatic) {}
    fn visit_expr_const(&mut self, _: &'ast syn::ExprConst) {}
}

/// Where a fragment stands: the byte range, and what it is.
struct Place {
    range: Range<usize>,
    node: Node,
}

fn find(source: &str, functions: &Functions, seed: &Seed) -> Result<Place, SourceError> {
    let wrong = |what: String| SourceError::Place {
        name: seed.name.clone(),
        file: seed.file.display().to_string(),
        function: seed.function.clone(),
        find: seed.find.clone(),
        what,
    };
    let function = match functions.found.get(&seed.function).map(Vec::as_slice) {
        Some([one]) => one,
        Some(several) => return Err(wrong(format!("{} functions of this name", several.len()))),
        None => {
            let names: Vec<_> = functions.found.keys().map(String::as_str).collect();
            return Err(wrong(format!("no such function; there are {}", names.join(", "))));
        }
    };
    let body = &source[function.body.clone()];
    let starts: Vec<usize> =
        body.match_indices(&seed.find).map(|(at, _)| function.body.start + at).collect();
    if starts.is_empty() {
        return Err(wrong("not found: was the code changed?".into()));
    }
    let node_at = |start: usize| {
        let range = start..start + seed.find.len();
        let nodes = || function.nodes.iter().filter(|(at, _)| *at == range);
        // A statement without semicolon is an expression too, and was met as a statement first.
        nodes().map(|(_, node)| *node).next().map(|node| Place { range: range.clone(), node })
    };
    let mut places: Vec<Place> = starts.iter().filter_map(|start| node_at(*start)).collect();
    if places.is_empty() {
        return Err(wrong("neither one expression nor one statement: name the whole of it".into()));
    }
    if seed.with.trim().is_empty() && places.iter().any(|place| place.node == Node::Expression) {
        return Err(wrong("an expression needs something in its place".into()));
    }
    match (seed.nth, places.len()) {
        (None, 1) => Ok(places.remove(0)),
        (None, count) => Err(wrong(format!("found {count} times: say which by `nth`"))),
        (Some(_), 1) => Err(wrong("found once: leave `nth` out".into())),
        (Some(nth), count) if (1..=count).contains(&nth) => Ok(places.swap_remove(nth - 1)),
        (Some(nth), count) => Err(wrong(format!("`nth` is {nth}, but it is found {count} times"))),
    }
}

/// One replaced node, with the mutants that stand there.
struct Edit<'s> {
    range: Range<usize>,
    node: Node,
    mutants: Vec<(usize, &'s Seed)>,
}

/// The text of a file with all of its `seeds`, each with its number. Line numbers stay.
///
/// # Errors
/// A [`SourceError`] for each mutant whose place is not what the registry says.
pub fn seeded(
    file: &str,
    source: &str,
    seeds: &[(usize, &Seed)],
) -> Result<String, Vec<SourceError>> {
    let parsed = syn::parse_file(source)
        .map_err(|error| vec![SourceError::Parse { file: file.into(), what: error.to_string() }])?;
    let mut functions = Functions::default();
    functions.visit_file(&parsed);
    let (mut edits, mut errors): (Vec<Edit<'_>>, _) = (Vec::new(), Vec::new());
    for (number, seed) in seeds {
        let place = match find(source, &functions, seed) {
            Ok(place) => place,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        match edits.iter_mut().find(|edit| edit.range == place.range) {
            Some(edit) => edit.mutants.push((*number, seed)),
            None => edits.push(Edit {
                range: place.range,
                node: place.node,
                mutants: vec![(*number, seed)],
            }),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    // Outer before inner, left before right.
    edits.sort_by_key(|edit| (edit.range.start, usize::MAX - edit.range.end));
    Ok(render(source, 0..source.len(), &edits))
}

/// The text of `range` with the edits inside it.
fn render(source: &str, range: Range<usize>, mut edits: &[Edit<'_>]) -> String {
    let mut text = String::new();
    let mut at = range.start;
    while let Some((edit, rest)) = edits.split_first() {
        let inside = rest.partition_point(|other| other.range.start < edit.range.end);
        text += &source[at..edit.range.start];
        let original = render(source, edit.range.clone(), &rest[..inside]);
        let mut chain = String::new();
        for (number, seed) in &edit.mutants {
            let (name, with) = (&seed.name, &seed.with);
            chain += &format!("if crate::seeded::on({number} /* {name} */) {{ {with} }} else ");
        }
        match edit.node {
            Node::Expression => text += &format!("({chain}{{ {original} }})"),
            Node::Statement => text += &format!("{chain}{{ {original} }}"),
        }
        at = edit.range.end;
        edits = &rest[inside..];
    }
    text + &source[at..range.end]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "\
struct S;
impl S {
    fn f(&self, a: u64, b: u64) -> u64 {
        step(a);
        step(a);
        a + b * 3
    }
}
impl Drop for S {
    fn drop(&mut self) { step(1); }
}
mod inner { fn g() -> u64 { const K: u64 = 5; match 7 { 7 => K, _ => 8 } } }
#[cfg(test)]
mod tests { fn f() { step(1) } }
";

    fn seed(name: &str, function: &str, find: &str, with: &str, nth: Option<usize>) -> Seed {
        Seed {
            name: name.into(),
            file: "s.rs".into(),
            function: function.into(),
            find: find.into(),
            nth,
            with: with.into(),
            rule: "R".into(),
        }
    }

    fn apply(seeds: &[Seed]) -> Result<String, String> {
        let numbered: Vec<_> = seeds.iter().enumerate().map(|(at, seed)| (at + 1, seed)).collect();
        seeded("s.rs", SOURCE, &numbered).map_err(|errors| {
            errors.iter().map(|error| error.to_string()).collect::<Vec<_>>().join("\n")
        })
    }

    fn one(function: &str, find: &str, with: &str, nth: Option<usize>) -> Result<String, String> {
        apply(&[seed("m", function, find, with, nth)])
    }

    #[test]
    fn an_expression_becomes_a_choice() {
        let text = one("S::f", "b * 3", "b", None).unwrap();
        assert!(text.contains("a + (if crate::seeded::on(1 /* m */) { b } else { b * 3 })\n"));
        assert_eq!(text.lines().count(), SOURCE.lines().count());
    }

    #[test]
    fn a_statement_may_be_left_out() {
        let text = one("S::f", "step(a);", "", Some(2)).unwrap();
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        assert_eq!(lines[3], "step(a);");
        assert_eq!(lines[4], "if crate::seeded::on(1 /* m */) {  } else { step(a); }");
        assert!(one("S::drop", "step(1);", "", None).is_ok(), "a trait's function, by its type");
    }

    #[test]
    fn mutants_share_a_fragment_and_stand_inside_each_other() {
        let seeds = [
            seed("inner", "S::f", "b", "0", None),
            seed("outer", "S::f", "b * 3", "1", None),
            seed("again", "S::f", "b * 3", "2", None),
        ];
        assert!(apply(&seeds).unwrap().contains(
            "a + (if crate::seeded::on(2 /* outer */) { 1 } else if crate::seeded::on(3 /* again */) \
             { 2 } else { (if crate::seeded::on(1 /* inner */) { 0 } else { b }) * 3 })"
        ));
    }

    #[test]
    fn a_wrong_place_is_an_error_that_names_it() {
        let error = |function, find, with, nth| one(function, find, with, nth).unwrap_err();
        let gone = error("S::f", "step(c);", "", None);
        assert!(
            gone.starts_with("mutant `m`: s.rs, function `S::f`, fragment `step(c);`: not found")
        );
        assert!(error("f", "b", "0", None).contains("no such function; there are S::drop, S::f"));
        assert!(error("S::f", "step(a);", "", None).contains("found 2 times"));
        assert!(error("S::f", "step(a);", "", Some(3)).contains("`nth` is 3"));
        assert!(error("S::f", "b * 3", "b", Some(1)).contains("leave `nth` out"));
        assert!(error("S::f", "a + b", "a", None).contains("neither one expression"));
        assert!(error("S::f", "b * 3", "", None).contains("needs something in its place"));
        assert!(error("tests::f", "step(1)", "2", None).contains("no such function"));
        assert!(error("inner::g", "5", "6", None).contains("neither"), "a constant");
    }

    #[test]
    fn what_is_no_rust_is_refused() {
        let errors = seeded("s.rs", "fn {", &[]).unwrap_err();
        assert!(errors[0].to_string().starts_with("s.rs: "), "{errors:?}");
    }

    #[test]
    fn all_wrong_places_are_named_at_once() {
        let errors = apply(&[seed("a", "S::f", "no", "1", None), seed("b", "no", "b", "1", None)])
            .unwrap_err();
        assert!(errors.contains("mutant `a`") && errors.contains("\nmutant `b`"), "{errors}");
    }
}
