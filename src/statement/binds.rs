//! Bind values as bytes, and the places in them where a type's OID is still open.

use std::sync::Arc;

use diesel::QueryResult;
use diesel::pg::{Pg, PgMetadataLookup, PgTypeMetadata};
use diesel::query_builder::QueryFragment;
use diesel::query_builder::bind_collector::RawBytesBindCollector;

use super::oids::{CustomType, OidMap, Oids};

/// Stand-ins for OIDs that are looked up later. Two ranges, so that two collections of the same
/// query differ exactly where a stand-in was written. Real OIDs count up from below.
const FIRST_STAND_IN: u32 = 0xF000_0000;
const SECOND_STAND_IN: u32 = 0xE000_0000;

/// Collected binds.
pub(super) struct Binds {
    pub(super) collected: RawBytesBindCollector<Pg>,
    open: Vec<CustomType>,
    places: Vec<Place>,
}

/// Where in a bind value the OID with this stand-in number is written.
struct Place {
    bind: usize,
    offset: usize,
    stand_in: u32,
}

impl Binds {
    pub(super) fn collect(query: &dyn QueryFragment<Pg>, known: &Arc<OidMap>) -> QueryResult<Self> {
        let (first, open) = collect_with(query, known, FIRST_STAND_IN)?;
        if open.is_empty() {
            return Ok(Self {
                collected: first,
                open,
                places: Vec::new(),
            });
        }
        // A serialised array or composite holds OIDs inside its bytes, at places that only its
        // own serialisation knows. Collecting again with other stand-ins shows them.
        let (second, _) = collect_with(query, known, SECOND_STAND_IN)?;
        let places = find_places(&first, &second);
        Ok(Self {
            collected: first,
            open,
            places,
        })
    }

    pub(super) fn open_types(&self) -> &[CustomType] {
        &self.open
    }

    pub(super) fn resolve(&mut self, oids: &[Oids]) {
        let real = |stand_in: u32| real_oid(stand_in, oids);
        for metadata in &mut self.collected.metadata {
            if let (Ok(oid), Ok(array)) = (metadata.oid(), metadata.array_oid()) {
                *metadata = PgTypeMetadata::new(real(oid), real(array));
            }
        }
        for place in self.places.drain(..) {
            let bytes = self.collected.binds.get_mut(place.bind);
            let written = bytes
                .and_then(Option::as_mut)
                .and_then(|bytes| bytes.get_mut(place.offset..))
                .and_then(<[u8]>::first_chunk_mut::<4>);
            if let Some(written) = written {
                *written = real(FIRST_STAND_IN + place.stand_in).to_be_bytes();
            }
        }
        self.open.clear();
    }
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
    known: &Arc<OidMap>,
    base: u32,
) -> QueryResult<(RawBytesBindCollector<Pg>, Vec<CustomType>)> {
    let mut collector = RawBytesBindCollector::<Pg>::new();
    let mut lookup = Lookup {
        // Diesel's `dyn PgMetadataLookup` must be `'static`.
        known: Arc::clone(known),
        open: Vec::new(),
        base,
    };
    query.collect_binds(&mut collector, &mut lookup, &Pg)?;
    Ok((collector, lookup.open))
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
    known: Arc<OidMap>,
    open: Vec<CustomType>,
    base: u32,
}

impl PgMetadataLookup for Lookup {
    fn lookup_type(&mut self, name: &str, schema: Option<&str>) -> PgTypeMetadata {
        let wanted = CustomType {
            schema: schema.map(str::to_owned),
            name: name.to_owned(),
        };
        if let Some(Oids { oid, array }) = self.known.get(&wanted) {
            return PgTypeMetadata::new(oid, array);
        }
        let position = self.open.iter().position(|open| *open == wanted);
        let position = position.unwrap_or_else(|| {
            self.open.push(wanted);
            self.open.len() - 1
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

    fn known(entries: &[(&str, Option<&str>, u32)]) -> Arc<OidMap> {
        let mut map = OidMap::default();
        for (name, schema, oid) in entries {
            let custom = CustomType {
                schema: schema.map(str::to_owned),
                name: (*name).to_owned(),
            };
            map.insert(
                custom,
                Oids {
                    oid: *oid,
                    array: oid + 1,
                },
            );
        }
        Arc::new(map)
    }

    /// Collecting with the OIDs known and filling them in later must give the same bytes.
    #[test]
    fn filling_in_later_is_the_same_as_knowing() {
        let query = diesel::select((
            vec![Mood("sad"), Mood("happy")].into_sql::<Array<MoodType>>(),
            Pair(7, Mood("sad")).into_sql::<PairType>(),
            // Bytes that look like stand-ins are the user's own and stay.
            vec![-268_435_456_i32, -536_870_912].into_sql::<Array<Integer>>(),
            "plain".into_sql::<Text>(),
        ));
        let all = known(&[("mood", None, 70_000), ("pair", Some("other"), 80_000)]);
        let wanted = Binds::collect(&query, &all).unwrap();
        assert!(wanted.open_types().is_empty());

        let mut late = Binds::collect(&query, &Arc::default()).unwrap();
        let found: Vec<Oids> = late
            .open_types()
            .iter()
            .map(|open| all.get(open).unwrap())
            .collect();
        assert_eq!(found.len(), 2);
        late.resolve(&found);
        assert_eq!(late.collected.binds, wanted.collected.binds);
        let oids = |binds: &Binds| -> Vec<(u32, u32)> {
            let each = binds.collected.metadata.iter();
            each.map(|m| (m.oid().unwrap(), m.array_oid().unwrap()))
                .collect()
        };
        assert_eq!(oids(&late), oids(&wanted));

        let mut half = Binds::collect(&query, &known(&[("mood", None, 70_000)])).unwrap();
        assert_eq!(half.open_types().len(), 1);
        half.resolve(&[all.get(&late_type()).unwrap()]);
        assert_eq!(half.collected.binds, wanted.collected.binds);
    }

    fn late_type() -> CustomType {
        CustomType {
            schema: Some("other".to_owned()),
            name: "pair".to_owned(),
        }
    }

    #[test]
    fn a_record_of_plain_types_has_nothing_open() {
        let query = diesel::select((1, "x").into_sql::<Record<(Integer, Text)>>());
        assert!(
            Binds::collect(&query, &Arc::default())
                .unwrap()
                .open_types()
                .is_empty()
        );
    }
}
