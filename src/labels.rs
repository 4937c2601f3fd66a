//! Closed sets of words: an enum, and beside each variant its word in metrics, logs and answers.

/// An enum whose variants each stand for one fixed word.
pub trait Label: Copy + PartialEq + Sized + 'static {
    /// Every variant, in order.
    const ALL: &'static [Self];
    /// The word.
    fn label(self) -> &'static str;
}

/// Declares such enums: `pub enum DropCause { NotDecoded = "not_decoded", … }`.
///
/// Not `strum`: two methods of one page do not pay for a procedural macro in every build.
macro_rules! labels {
    ($(
        $(#[$meta:meta])*
        $vis:vis enum $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $label:literal),+ $(,)? }
    )+) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "each variant is its word")]
        $vis enum $name { $($(#[$variant_meta])* $variant),+ }

        #[allow(dead_code, reason = "not every set of words is walked through")]
        impl $name {
            /// Every variant, in order.
            $vis const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Returns the word of this variant.
            $vis const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label),+ }
            }
        }

        impl $crate::labels::Label for $name {
            const ALL: &'static [Self] = Self::ALL;

            fn label(self) -> &'static str {
                self.label()
            }
        }
    )+};
}

pub(crate) use labels;

/// One value for each variant of `L`.
#[derive(Clone, Debug)]
pub struct PerLabel<L, T>(Box<[(L, T)]>);

impl<L: Label, T> PerLabel<L, T> {
    /// Asks `make` for the value of each variant.
    pub fn new(mut make: impl FnMut(L) -> T) -> Self {
        Self(L::ALL.iter().map(|label| (*label, make(*label))).collect())
    }

    /// The value of a variant. Looks through the set, which holds a handful.
    pub fn of(&self, label: L) -> &T {
        let found = self.0.iter().find(|(own, _)| *own == label);
        &found.expect("ALL holds every variant").1
    }

    /// The value of a variant, to be changed.
    pub fn of_mut(&mut self, label: L) -> &mut T {
        let found = self.0.iter_mut().find(|(own, _)| *own == label);
        &mut found.expect("ALL holds every variant").1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    labels! {
        enum Fruit { Apple = "apple", Blackberry = "black_berry" }
    }

    #[test]
    fn each_variant_has_its_word_and_its_value() {
        assert_eq!(Fruit::ALL, [Fruit::Apple, Fruit::Blackberry]);
        let lengths = PerLabel::new(|fruit: Fruit| fruit.label().len());
        assert_eq!(
            [*lengths.of(Fruit::Apple), *lengths.of(Fruit::Blackberry)],
            [5, 11]
        );
    }
}
