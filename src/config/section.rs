//! The declaration of options. Each option is declared once, with its name, type, default, bounds, description and flag.
//! Files, environment, command line, [checks](super::check) and [the reference](mod@super::reference) all use this
//! declaration.

use std::fmt::{self, Display};
use std::time::Duration;

use crate::model::units::Time;

/// The declaration of one option.
#[derive(Debug, Clone)]
pub struct Key {
    /// The full name, such as `socket.dns.enabled`.
    pub name: String,
    /// What it does, in Markdown.
    pub description: &'static str,
    /// The command-line flag that sets it.
    pub flag: Option<Flag>,
    /// The accepted values, such as `0 to 9`; `None` if every value of its type is accepted.
    pub bounds: Option<String>,
    /// The key without which it has no effect.
    pub needs: Option<&'static str>,
    /// Whether a running agent applies a new value when it reads its configuration again.
    pub reloadable: bool,
}

/// A command-line flag that sets an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flag {
    /// Without the dashes.
    pub name: &'static str,
    /// The name of its value in the help, such as `TIME`.
    pub value: &'static str,
}

/// A section of the configuration, as [`section!`] declares it.
pub(super) trait Section {
    /// The options of the library that this section sets.
    type Target;

    /// The names of the inner sections, each with its description.
    const INNER: &'static [(&'static str, &'static str)];

    /// Adds the keys of this section, whose name is `section`, and of its inner sections.
    fn keys(section: &str, keys: &mut Vec<Key>);

    /// Adds the keys whose values are out of bounds, each with the problem.
    fn check(&self, section: &str, problems: &mut Vec<(String, String)>);

    /// Sets the options of the library, except those that inner sections set.
    fn apply_to(&self, target: &mut Self::Target);
}

/// Declares a section: a structure that implements [`Default`] and [`Section`].
///
/// ```text
/// section! {
///     /// The description of the section.
///     pub struct Name sets OptionsOfTheLibrary {
///         /// The description of the option, for the documentation, the example and the help.
///         #[flag("the-flag", "VALUE")]     the command-line flag that sets the option
///         #[bounds(0, 9)]                  the minimum and the maximum, or only the minimum
///         #[needs("another.key")]          the option has no effect without this key
///         #[reloadable(true)]              a running agent applies a new value
///         key: Type = default,
///         another_key: Type,               sets the field of this name in OptionsOfTheLibrary, and has its default
///     } with {
///         /// The description of an inner section.
///         #[reloadable(true)]              all its options are reloadable
///         name: InnerSection,
///     }
/// }
/// ```
macro_rules! section {
    (
        $(#[doc = $title:literal])*
        pub struct $section:ident $(sets $target:ty)? {
            $(
                $(#[doc = $description:literal])*
                $(#[flag($flag:literal, $value:literal)])?
                $(#[bounds($min:expr $(, $max:expr)?)])?
                $(#[needs($needs:literal)])?
                $(#[reloadable($reloadable:literal)])?
                $(#[serde($($serde:tt)*)])?
                $key:ident: $type:ty $(= $default:expr)?,
            )*
        } $(with {
            $(
                $(#[doc = $about:literal])*
                $(#[reloadable($all_reloadable:literal)])?
                $inner:ident: $Inner:ty,
            )*
        })?
    ) => {
        $(#[doc = $title])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[non_exhaustive]
        pub struct $section {
            $(
                $(#[doc = $description])*
                $(#[serde($($serde)*)])?
                pub $key: $type,
            )*
            $($(
                $(#[doc = $about])*
                pub $inner: $Inner,
            )*)?
        }

        const _: () = {
            use $crate::config::section::*;

            impl Default for $section {
                fn default() -> Self {
                    Self {
                        $($key: section!(@default $key $(= $default)?),)*
                        $($($inner: Default::default(),)*)?
                    }
                }
            }

            #[allow(unused_variables, reason = "a section may have no keys, no bounds or no inner sections")]
            impl Section for $section {
                type Target = section!(@target $($target)?);

                const INNER: &'static [(&'static str, &'static str)] =
                    &[$($((bare(stringify!($inner)), concat!($($about),*).trim_ascii()),)*)?];

                fn keys(section: &str, keys: &mut Vec<Key>) {
                    $(keys.push(Key {
                        name: join(section, bare(stringify!($key))),
                        description: concat!($($description),*).trim_ascii(),
                        flag: None$(.or(Some(Flag { name: $flag, value: $value })))?,
                        bounds: None$(.or(Some(Bounds { min: $min, max: None$(.or(Some($max)))? }.to_string())))?,
                        needs: None$(.or(Some($needs)))?,
                        reloadable: [$($reloadable,)? false][0],
                    });)*
                    $($({
                        let first = keys.len();
                        <$Inner>::keys(&join(section, bare(stringify!($inner))), keys);
                        $(keys[first..].iter_mut().for_each(|key| key.reloadable = $all_reloadable);)?
                    })*)?
                }

                fn check(&self, section: &str, problems: &mut Vec<(String, String)>) {
                    $($(
                        let problem = Bounds { min: $min, max: None$(.or(Some($max)))? }.problem(&self.$key);
                        problems.extend(problem.map(|problem| (join(section, bare(stringify!($key))), problem)));
                    )?)*
                    $($(self.$inner.check(&join(section, bare(stringify!($inner))), problems);)*)?
                }

                fn apply_to(&self, target: &mut Self::Target) {
                    $(section!(@apply target self $key $(= $default)?);)*
                }
            }
        };
    };
    (@target) => { () };
    (@target $target:ty) => { $target };
    (@default $key:ident = $default:expr) => { $default };
    (@default $key:ident) => { LibraryValue::from_library(<Self as Section>::Target::default().$key) };
    (@apply $target:ident $self:ident $key:ident = $default:expr) => {};
    (@apply $target:ident $self:ident $key:ident) => { $target.$key = LibraryValue::to_library(&$self.$key) };
}
pub(super) use section;

/// Converts between the value of a key and the field of the library's options that the key sets. The field has type `T`.
pub(super) trait LibraryValue<T> {
    /// Converts from the field's value.
    fn from_library(value: T) -> Self;
    /// Converts to the field's value.
    fn to_library(&self) -> T;
}

impl<T: Clone> LibraryValue<T> for T {
    fn from_library(value: T) -> T {
        value
    }

    fn to_library(&self) -> T {
        self.clone()
    }
}

impl LibraryValue<Duration> for Time {
    fn from_library(value: Duration) -> Self {
        value.into()
    }

    fn to_library(&self) -> Duration {
        (*self).into()
    }
}

impl LibraryValue<Option<Duration>> for Option<Time> {
    fn from_library(value: Option<Duration>) -> Self {
        value.map(Time::from)
    }

    fn to_library(&self) -> Option<Duration> {
        self.map(Duration::from)
    }
}

/// The values that an option accepts.
pub(super) struct Bounds<T> {
    /// The minimum.
    pub(super) min: T,
    /// The maximum, if there is one.
    pub(super) max: Option<T>,
}

impl<T: Display + PartialOrd> Bounds<T> {
    /// The error message for a value that is out of bounds.
    pub(super) fn problem(&self, value: &T) -> Option<String> {
        let fits = *value >= self.min && self.max.as_ref().is_none_or(|max| value <= max);
        (!fits).then(|| match self.max {
            Some(_) => format!("{value} is not within {self}"),
            None => format!("must be {self}"),
        })
    }
}

impl<T: Display> Display for Bounds<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.max {
            Some(max) => write!(f, "{} to {max}", self.min),
            None => write!(f, "at least {}", self.min),
        }
    }
}

/// The name of a field without the `r#` of a raw identifier.
pub(super) const fn bare(field: &'static str) -> &'static str {
    match field.as_bytes() {
        [b'r', b'#', ..] => field.split_at(2).1,
        _ => field,
    }
}

/// The full name of a key within a section.
pub(super) fn join(section: &str, key: &str) -> String {
    if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Default, PartialEq)]
    pub struct Target {
        time: Duration,
    }

    section! {
        /// Two keys.
        pub struct Outer sets Target {
            /// A time
            /// with a flag.
            #[flag("time", "TIME")]
            time: Time,
            /// A number with every attribute.
            #[flag("number", "N")]
            #[bounds(1, 9)]
            #[needs("time")]
            #[reloadable(true)]
            r#type: u8 = 7,
        } with {
            /// Another.
            #[reloadable(true)]
            r#match: Inner,
        }
    }

    section! {
        /// One key.
        pub struct Inner {
            /// A minimum without a maximum.
            #[bounds(2)]
            min: u8 = 3,
        }
    }

    #[test]
    fn a_declaration_becomes_keys() {
        let mut keys = Vec::new();
        Outer::keys("a", &mut keys);
        let declared = keys.iter().map(|key| (&*key.name, key.description, key.bounds.as_deref(), key.needs));
        let time = ("a.time", "A time with a flag.", None, None);
        let number = ("a.type", "A number with every attribute.", Some("1 to 9"), Some("time"));
        let min = ("a.match.min", "A minimum without a maximum.", Some("at least 2"), None);
        assert_eq!(declared.collect::<Vec<_>>(), [time, number, min]);
        assert_eq!(keys[0].flag, Some(Flag { name: "time", value: "TIME" }));
        assert_eq!(keys.iter().map(|key| key.reloadable).collect::<Vec<_>>(), [false, true, true]);
        assert_eq!(Outer::INNER, [("match", "Another.")]);
        let text = serde_json::to_string(&Outer::default().r#match).unwrap();
        assert_eq!(text, r#"{"min":3}"#);
    }

    #[test]
    fn keys_out_of_bounds_are_named() {
        let mut outer = Outer::default();
        let problems = |outer: &Outer| {
            let mut problems = Vec::new();
            outer.check("a", &mut problems);
            problems.into_iter().map(|(key, problem)| format!("{key}: {problem}")).collect::<Vec<_>>()
        };
        assert!(problems(&outer).is_empty());
        (outer.r#type, outer.r#match.min) = (10, 1);
        assert_eq!(problems(&outer), ["a.type: 10 is not within 1 to 9", "a.match.min: must be at least 2"]);
    }

    #[test]
    fn a_key_without_a_default_has_the_librarys_default_and_sets_the_librarys_field() {
        let mut target = Target { time: Duration::from_secs(5) };
        assert_eq!(Duration::from(Outer::default().time), Duration::ZERO);
        Outer { time: Duration::from_secs(9).into(), ..Outer::default() }.apply_to(&mut target);
        assert_eq!(target.time, Duration::from_secs(9));
    }

    #[test]
    fn names_are_joined() {
        assert_eq!(join("", "socket.dns"), "socket.dns");
        assert_eq!(join("socket", "dns.enabled"), "socket.dns.enabled");
        assert_eq!((bare("r#type"), bare("rate")), ("type", "rate"));
    }
}
