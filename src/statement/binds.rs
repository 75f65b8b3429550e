//! Bind values as bytes, and the places in them where a type's OID is still open.

use diesel::QueryResult;
use diesel::pg::{Pg, PgMetadataLookup, PgTypeMetadata};
use diesel::query_builder::QueryFragment;
use diesel::query_builder::bind_collector::RawBytesBindCollector;

use super::oids::{CustomType, Oids};

/// Stand-ins for OIDs that are looked up later. Two ranges, so that two collections of the same
/// query differ exactly where a stand-in was written. Real OIDs count up from below.
const FIRST_STAND_IN: u32 = 0xF000_0000;
const SECOND_STAND_IN: u32 = 0xE000_0000;

/// Collected binds. The OIDs of custom types can be filled in again and again: a type may be dropped
/// and made anew between two attempts.
pub(super) struct Binds {
    pub(super) collected: RawBytesBindCollector<Pg>,
    /// What is open of them. In a box: few statements have any, and this is part of each statement's future.
    open: Option<Box<Open>>,
}

/// The custom types of binds, and where their OIDs belong.
struct Open {
    custom: Vec<CustomType>,
    places: Vec<Place>,
    /// The types of the binds, with stand-ins.
    types: Vec<PgTypeMetadata>,
}

/// A bind value, as far as a setting can be made from it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Bound {
    Text(String),
    Bool(bool),
    Null,
    /// A value of another type.
    Other,
}

/// Bind values must never be printed.
impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bound")
    }
}

/// Where in a bind value the OID with this stand-in number is written.
struct Place {
    bind: usize,
    offset: usize,
    stand_in: u32,
}

impl Binds {
    pub(super) fn collect(query: &dyn QueryFragment<Pg>) -> QueryResult<Self> {
        let (first, custom) = collect_with(query, FIRST_STAND_IN)?;
        if custom.is_empty() {
            return Ok(Self {
                collected: first,
                open: None,
            });
        }
        // A serialised array or composite holds OIDs inside its bytes, at places that only its
        // own serialisation knows. Collecting again with other stand-ins shows them.
        let places = if holds_stand_ins(&first, custom.len()) {
            let (second, _) = collect_with(query, SECOND_STAND_IN)?;
            find_places(&first, &second)
        } else {
            Vec::new()
        };
        let open = Open {
            types: first.metadata.clone(),
            custom,
            places,
        };
        Ok(Self {
            collected: first,
            open: Some(Box::new(open)),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.collected.binds.len()
    }

    /// The bind of this number, from 0.
    pub(super) fn bound(&self, number: usize) -> Bound {
        let (Some(value), Some(metadata)) = (
            self.collected.binds.get(number),
            self.collected.metadata.get(number),
        ) else {
            return Bound::Other;
        };
        let (Some(bytes), Ok(oid)) = (value, metadata.oid()) else {
            return if value.is_none() {
                Bound::Null
            } else {
                Bound::Other
            };
        };
        decode(oid, bytes).unwrap_or(Bound::Other)
    }

    pub(super) fn custom_types(&self) -> &[CustomType] {
        self.open.as_ref().map_or(&[], |open| &open.custom)
    }

    pub(super) fn resolve(&mut self, oids: &[Oids]) {
        let Some(open) = &self.open else {
            return;
        };
        let real = |stand_in: u32| real_oid(stand_in, oids);
        for (metadata, template) in self.collected.metadata.iter_mut().zip(&open.types) {
            if let (Ok(oid), Ok(array)) = (template.oid(), template.array_oid()) {
                *metadata = PgTypeMetadata::new(real(oid), real(array));
            }
        }
        for place in &open.places {
            let bytes = self.collected.binds.get_mut(place.bind);
            let written = bytes
                .and_then(Option::as_mut)
                .and_then(|bytes| bytes.get_mut(place.offset..))
                .and_then(<[u8]>::first_chunk_mut::<4>);
            if let Some(written) = written {
                *written = real(FIRST_STAND_IN + place.stand_in).to_be_bytes();
            }
        }
    }
}

/// Whether the values' bytes may hold a stand-in at all: enums are short, and their types stand outside.
fn holds_stand_ins(collected: &RawBytesBindCollector<Pg>, types: usize) -> bool {
    let holds = |bytes: &[u8]| {
        bytes.windows(4).any(|window| {
            let oid = <[u8; 4]>::try_from(window).map(u32::from_be_bytes);
            let number = oid.ok().and_then(|oid| oid.checked_sub(FIRST_STAND_IN));
            number.is_some_and(|number| (number as usize) < 2 * types)
        })
    };
    collected.binds.iter().flatten().any(|bytes| holds(bytes))
}

/// Text, truth values and integers; these are what settings are made from.
fn decode(oid: u32, bytes: &[u8]) -> Option<Bound> {
    let text = match oid {
        16 => return Some(Bound::Bool(*bytes.first()? != 0)),
        // text, varchar, name, bpchar, unknown
        25 | 1043 | 19 | 1042 | 705 => std::str::from_utf8(bytes).ok()?.to_owned(),
        20 => i64::from_be_bytes(bytes.try_into().ok()?).to_string(),
        21 => i16::from_be_bytes(bytes.try_into().ok()?).to_string(),
        23 => i32::from_be_bytes(bytes.try_into().ok()?).to_string(),
        _ => return None,
    };
    Some(Bound::Text(text))
}

/// Stand-ins come in pairs: the type's, then its array's.
fn real_oid(oid: u32, oids: &[Oids]) -> u32 {
    let Some(number) = oid.checked_sub(FIRST_STAND_IN) else {
        return oid;
    };
    match oids.get(number as usize / 2) {
        Some(found) if number % 2 == 0 => found.oid,
        Some(found) => found.array,
        None => oid,
    }
}

fn collect_with(
    query: &dyn QueryFragment<Pg>,
    base: u32,
) -> QueryResult<(RawBytesBindCollector<Pg>, Vec<CustomType>)> {
    let mut collector = RawBytesBindCollector::<Pg>::new();
    let mut lookup = Lookup {
        custom: Vec::new(),
        base,
    };
    query.collect_binds(&mut collector, &mut lookup, &Pg)?;
    Ok((collector, lookup.custom))
}

fn find_places(
    first: &RawBytesBindCollector<Pg>,
    second: &RawBytesBindCollector<Pg>,
) -> Vec<Place> {
    let mut places = Vec::new();
    for (bind, pair) in first.binds.iter().zip(&second.binds).enumerate() {
        let (Some(one), Some(two)) = pair else {
            continue;
        };
        for (offset, (one, two)) in one.windows(4).zip(two.windows(4)).enumerate() {
            let (Ok(one), Ok(two)) = (<[u8; 4]>::try_from(one), <[u8; 4]>::try_from(two)) else {
                continue;
            };
            let first_number = u32::from_be_bytes(one).checked_sub(FIRST_STAND_IN);
            let second_number = u32::from_be_bytes(two).checked_sub(SECOND_STAND_IN);
            if let (Some(stand_in), true) = (first_number, first_number == second_number) {
                places.push(Place {
                    bind,
                    offset,
                    stand_in,
                });
            }
        }
    }
    places
}

struct Lookup {
    custom: Vec<CustomType>,
    base: u32,
}

impl PgMetadataLookup for Lookup {
    fn lookup_type(&mut self, name: &str, schema: Option<&str>) -> PgTypeMetadata {
        let wanted = CustomType {
            schema: schema.map(str::to_owned),
            name: name.to_owned(),
        };
        let position = self.custom.iter().position(|custom| *custom == wanted);
        let position = position.unwrap_or_else(|| {
            self.custom.push(wanted);
            self.custom.len() - 1
        });
        let number = u32::try_from(position * 2).unwrap_or(u32::MAX / 4);
        PgTypeMetadata::new(self.base + number, self.base + number + 1)
    }
}

#[cfg(test)]
mod tests {
    use diesel::prelude::*;
    use diesel::serialize::{self, IsNull, Output, ToSql, WriteTuple};
    use diesel::sql_types::{Array, Integer, Record, Text};

    use super::*;

    #[derive(diesel::sql_types::SqlType, diesel::query_builder::QueryId)]
    #[diesel(postgres_type(name = "mood"))]
    struct MoodType;

    #[derive(Debug, diesel::expression::AsExpression)]
    #[diesel(sql_type = MoodType)]
    struct Mood(&'static str);

    impl ToSql<MoodType, Pg> for Mood {
        fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
            std::io::Write::write_all(out, self.0.as_bytes())?;
            Ok(IsNull::No)
        }
    }

    #[derive(diesel::sql_types::SqlType, diesel::query_builder::QueryId)]
    #[diesel(postgres_type(name = "pair", schema = "other"))]
    struct PairType;

    #[derive(Debug, diesel::expression::AsExpression)]
    #[diesel(sql_type = PairType)]
    struct Pair(i32, Mood);

    impl ToSql<PairType, Pg> for Pair {
        fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
            WriteTuple::<(Integer, MoodType)>::write_tuple(&(self.0, &self.1), out)
        }
    }

    /// What filling in gives is what collecting with those OIDs gives, and it can be done again.
    #[test]
    fn filling_in_gives_the_bytes_of_the_types_each_time() {
        let query = diesel::select((
            vec![Mood("sad"), Mood("happy")].into_sql::<Array<MoodType>>(),
            Pair(7, Mood("sad")).into_sql::<PairType>(),
            // Bytes that look like stand-ins are the user's own and stay.
            vec![-268_435_456_i32, -536_870_912].into_sql::<Array<Integer>>(),
            "plain".into_sql::<Text>(),
        ));
        let mut binds = Binds::collect(&query).unwrap();
        assert_eq!(binds.custom_types().len(), 2);
        let places = &binds.open.as_ref().unwrap().places;
        assert_eq!(places.len(), 2, "in the array and in the composite");
        for base in [70_000, 90_000] {
            let found = [base, base + 10].map(|oid| Oids {
                oid,
                array: oid + 1,
            });
            binds.resolve(&found);
            // What serialising with these OIDs gives.
            let (wanted, _) = collect_with(&query, base).unwrap();
            let mood = |bytes: &Option<Vec<u8>>, offset: usize| {
                let bytes = &bytes.as_ref().unwrap()[offset..offset + 4];
                u32::from_be_bytes(bytes.try_into().unwrap())
            };
            // The stand-ins of the base are the type's own OID first, which is all that is written here.
            assert_eq!(binds.collected.binds[0], wanted.binds[0]);
            assert_eq!(mood(&binds.collected.binds[0], 8), base);
            assert_eq!(binds.collected.binds[2..], wanted.binds[2..]);
            let composite = binds.collected.binds[1].as_ref().unwrap();
            let holds = |oid: u32| composite.windows(4).any(|it| it == oid.to_be_bytes());
            assert!(holds(base) && !holds(base + 10));
            let own = binds.collected.metadata.iter().map(|it| it.oid().unwrap());
            let own: Vec<u32> = own.collect();
            assert_eq!(own[..2], [base + 1, base + 10]);
        }
    }

    #[test]
    fn an_enum_alone_is_collected_once() {
        let query = diesel::select(Mood("sad").into_sql::<MoodType>());
        let mut binds = Binds::collect(&query).unwrap();
        assert!(binds.open.as_ref().unwrap().places.is_empty());
        binds.resolve(&[Oids { oid: 7, array: 8 }]);
        assert_eq!(binds.collected.metadata[0].oid().unwrap(), 7);
    }

    #[test]
    fn a_record_of_plain_types_has_nothing_open() {
        let query = diesel::select((1, "x").into_sql::<Record<(Integer, Text)>>());
        assert!(Binds::collect(&query).unwrap().custom_types().is_empty());
    }
}
