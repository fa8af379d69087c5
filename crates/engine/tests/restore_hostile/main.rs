//! Points that mean harm, restored over a living app: each is refused, and the app is byte for byte what it was, or what
//! is sound of it is restored and the rest told. Nothing outside the home is ever touched, and what was restored
//! can be taken back.
//!
//! [`forge`] writes any bytes into a real vault as whoever has its password can; [`world`] is the app with its neighbours.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, missing_docs)]

mod contents;
mod forge;
mod names;
mod race;
mod roots;
mod world;

use backstay_model::Code;
use serde_json::Value;

use forge::Forge;
use world::World;

/// What must come of a point.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Must {
    /// It is refused with this code.
    Refuse(Code),
    /// The sound part is there; these paths are there too, those are not; whether there is something to tell.
    Restore { there: &'static [&'static str], not: &'static [&'static str], told: bool },
}

/// Restored with nothing to tell.
pub(crate) const fn whole(there: &'static [&'static str]) -> Must {
    Must::Restore { there, not: &[], told: false }
}

type Build = dyn FnOnce(&mut Forge) -> Vec<Value>;

/// A folder of a point between two sound files.
pub(crate) struct Case {
    pub name: String,
    pub build: Box<Build>,
    pub must: Must,
}

pub(crate) fn case(name: &str, must: Must, build: impl FnOnce(&mut Forge) -> Vec<Value> + 'static) -> Case {
    Case { name: name.to_owned(), must, build: Box::new(build) }
}

/// Restores each, one after the other, over the same app; tells of all that are not as they must be.
pub(crate) fn all(cases: Vec<Case>) {
    let world = World::new();
    let mut forge = Forge::of(&world);
    let number = cases.len();
    let mut wrong = Vec::new();
    for Case { name, build, must } in cases {
        let mut nodes = vec![forge.file("aa good", b"good")];
        nodes.extend(build(&mut forge));
        nodes.push(forge.file("zz good", b"also good"));
        let tree = forge.tree(&nodes);
        let point = forge.point(&tree);
        println!("{name}");
        if let Err(e) = world.restores(&point, must) {
            wrong.push(format!("{name}: {e}"));
        }
    }
    println!("{number} hostile points");
    assert!(wrong.is_empty(), "{}\n{} of {number}", wrong.join("\n"), wrong.len());
}
