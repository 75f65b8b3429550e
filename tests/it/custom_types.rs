//! Enums, composites, domains and arrays of them, looked up once for all connections.

use std::io::Write;

use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::{Pg, PgValue};
use diesel::prelude::*;
use diesel::serialize::{self, IsNull, Output, ToSql, WriteTuple};
use diesel::sql_types::{Integer, Record, SqlType};
use diesel_async::RunQueryDsl;

use crate::support::{blocking, builder, cluster, database, run};

#[derive(SqlType, diesel::query_builder::QueryId)]
#[diesel(postgres_type(name = "mood"))]
pub struct MoodType;

#[derive(Clone, Copy, Debug, PartialEq, AsExpression, FromSqlRow)]
#[diesel(sql_type = MoodType)]
enum Mood {
    Sad,
    Happy,
}

impl ToSql<MoodType, Pg> for Mood {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        out.write_all(match self {
            Self::Sad => b"sad",
            Self::Happy => b"happy",
        })?;
        Ok(IsNull::No)
    }
}

impl FromSql<MoodType, Pg> for Mood {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        match value.as_bytes() {
            b"sad" => Ok(Self::Sad),
            b"happy" => Ok(Self::Happy),
            _ => Err("not a mood".into()),
        }
    }
}

#[derive(SqlType, diesel::query_builder::QueryId)]
#[diesel(postgres_type(name = "weather", schema = "sky"))]
pub struct WeatherType;

#[derive(Clone, Debug, PartialEq, AsExpression, FromSqlRow)]
#[diesel(sql_type = WeatherType)]
struct Weather(i32, Mood);

impl ToSql<WeatherType, Pg> for Weather {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        WriteTuple::<(Integer, MoodType)>::write_tuple(&(self.0, self.1), out)
    }
}

impl FromSql<WeatherType, Pg> for Weather {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        let (degrees, mood) = FromSql::<Record<(Integer, MoodType)>, Pg>::from_sql(value)?;
        Ok(Self(degrees, mood))
    }
}

diesel::table! {
    use diesel::sql_types::*;
    use super::{MoodType, WeatherType};
    days (id) {
        id -> Integer,
        moods -> Array<MoodType>,
        weather -> WeatherType,
        grade -> Integer,
    }
}

const TYPES: &str = "
    CREATE SCHEMA sky;
    CREATE TYPE mood AS ENUM ('sad', 'happy');
    CREATE TYPE sky.weather AS (degrees integer, mood mood);
    CREATE DOMAIN grade AS integer CHECK (VALUE BETWEEN 1 AND 6);
    CREATE TABLE days (id integer PRIMARY KEY, moods mood[] NOT NULL, weather sky.weather NOT NULL,
        grade grade NOT NULL);
";

async fn typed_database() -> String {
    let database = database().await;
    let name = database.clone();
    blocking(move || {
        cluster().primary().sql(&name, TYPES).unwrap();
        cluster().wait_caught_up().unwrap();
    })
    .await;
    database
}

type Day = (i32, Vec<Mood>, Weather, i32);

#[tokio::test]
async fn they_go_in_and_come_back_on_every_node() {
    let database = typed_database().await;
    let pool = builder(&database).build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    let day: Day = (1, vec![Mood::Happy, Mood::Sad], Weather(21, Mood::Happy), 2);
    diesel::insert_into(days::table)
        .values((
            days::id.eq(day.0),
            days::moods.eq(&day.1),
            days::weather.eq(&day.2),
            days::grade.eq(day.3),
        ))
        .execute(&mut conn)
        .await
        .unwrap();
    blocking(|| cluster().wait_caught_up().unwrap()).await;
    let wanted = || {
        days::table
            .filter(days::weather.eq(Weather(21, Mood::Happy)))
            .filter(days::moods.eq(vec![Mood::Happy, Mood::Sad]))
    };
    for _ in 0..10 {
        let mut conn = pool.get().await.unwrap();
        let found: Vec<Day> = wanted().load(&mut conn.replica()).await.unwrap();
        assert_ne!(conn.last_route().unwrap().node, "primary");
        assert_eq!(found, std::slice::from_ref(&day));
        let found: Vec<Day> = wanted().load(&mut conn.primary()).await.unwrap();
        assert_eq!(found, std::slice::from_ref(&day));
    }
}

#[tokio::test]
async fn a_type_that_was_made_anew_is_found_again() {
    let database = typed_database().await;
    let pool = builder(&database).build().await.unwrap();
    let happy = || diesel::select(Mood::Happy.into_sql::<MoodType>());
    let mut conn = pool.get().await.unwrap();
    assert_eq!(
        happy().get_result::<Mood>(&mut conn).await.unwrap(),
        Mood::Happy
    );
    run(
        &mut conn,
        "DROP TABLE days; DROP TYPE sky.weather; DROP TYPE mood",
    )
    .await
    .unwrap();
    run(&mut conn, "CREATE TYPE mood AS ENUM ('sad', 'happy')")
        .await
        .unwrap();
    assert_eq!(
        happy().get_result::<Mood>(&mut conn).await.unwrap(),
        Mood::Happy
    );
    let mut other = pool.get().await.unwrap();
    assert_eq!(
        happy().get_result::<Mood>(&mut other).await.unwrap(),
        Mood::Happy
    );
}

#[tokio::test]
async fn a_name_means_what_the_sessions_search_path_says() {
    let database = typed_database().await;
    let pool = builder(&database).build().await.unwrap();
    let happy = || diesel::select(Mood::Happy.into_sql::<MoodType>());
    let mut conn = pool.get().await.unwrap();
    happy().get_result::<Mood>(&mut conn).await.unwrap();
    run(
        &mut conn,
        "CREATE SCHEMA other; CREATE TYPE other.mood AS ENUM ('happy'); SET search_path TO other",
    )
    .await
    .unwrap();
    let name = type_of_mood(&mut conn).await;
    assert_eq!(name, "mood");
    run(&mut conn, "SET search_path TO pg_catalog")
        .await
        .unwrap();
    let unknown = happy().get_result::<Mood>(&mut conn).await.unwrap_err();
    assert!(unknown.to_string().contains("search_path"), "{unknown}");
    let mut conn = pool.get().await.unwrap();
    let name = type_of_mood(&mut conn).await;
    assert_eq!(name, "mood");
}

/// The type that the server takes the bind value for, as this session would write it.
#[derive(diesel::QueryableByName)]
struct TypeName {
    #[diesel(sql_type = diesel::sql_types::Text)]
    name: String,
}

async fn type_of_mood(conn: &mut diesel_replicated::ReplicatedConnection) -> String {
    let query = diesel::sql_query("SELECT pg_catalog.pg_typeof($1)::text AS name");
    let named: TypeName = query
        .bind::<MoodType, _>(Mood::Happy)
        .get_result(conn)
        .await
        .unwrap();
    named.name
}

#[tokio::test]
async fn a_type_that_does_not_exist_is_named() {
    let database = database().await;
    let pool = builder(&database).build().await.unwrap();
    let mut conn = pool.get().await.unwrap();
    let error = diesel::select(Mood::Happy.into_sql::<MoodType>())
        .get_result::<Mood>(&mut conn)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("mood"), "{error}");
    assert_eq!(
        crate::support::count(&mut conn).await,
        3,
        "the connection is sound"
    );
}
