//! Only the address of a `primary_conninfo` changes.

use proptest::prelude::*;

use super::*;

fn to(host: &str, port: u16) -> Address {
    Address {
        host: host.to_owned(),
        hostaddr: None,
        port,
    }
}

fn read(text: &str) -> PrimaryConninfo {
    PrimaryConninfo::read(text.to_owned()).unwrap()
}

fn changed(text: &str, address: &Address) -> String {
    read(text).leading_to(address).unwrap().text().to_owned()
}

fn places(text: &str) -> Vec<String> {
    let addresses = read(text).addresses().unwrap();
    addresses.iter().map(ToString::to_string).collect()
}

// repmgr #253 and #62: the password was not escaped, or not there any more, and the standby could not log in.
#[test]
fn all_but_the_address_stays_to_the_byte() {
    for (before, after) in [
        (
            "host=old port=5433 user=rep password=geheim application_name=s2",
            "host=new port=6000 user=rep password=geheim application_name=s2",
        ),
        (
            r"user=rep  password = 'it\'s \\ = here' host = 'old'   port='5433' sslmode=verify-full",
            r"user=rep  password = 'it\'s \\ = here' host = new   port=6000 sslmode=verify-full",
        ),
        (
            r"password=a\ b\'c\ host=no user=rep host=old",
            r"port=6000 password=a\ b\'c\ host=no user=rep host=new",
        ),
        // The backslash at the end would take what is put behind it into the password.
        (
            r"user=rep password=x\",
            r"host=new port=6000 user=rep password=x\",
        ),
        (
            "host=old hostaddr=10.0.0.1 passfile='/a b/.pgpass' options='-c a=b'",
            "port=6000 host=new hostaddr='' passfile='/a b/.pgpass' options='-c a=b'",
        ),
        (
            "postgres://rep:p%40ss%2F@old:5433/postgres?application_name=s2&sslmode=require",
            "postgres://rep:p%40ss%2F@new:6000/postgres?application_name=s2&sslmode=require",
        ),
        ("postgresql://old", "postgresql://new:6000"),
        (
            "postgresql://rep@[::1]:5433?options=-c%20a%3Db",
            "postgresql://rep@new:6000?options=-c%20a%3Db",
        ),
        (
            "postgresql:///postgres?host=old&port=5433&hostaddr=10.0.0.1&password=a%26b",
            "postgresql://new:6000/postgres?host=new&port=6000&hostaddr=&password=a%26b",
        ),
    ] {
        assert_eq!(changed(before, &to("new", 6000)), after);
        assert_eq!(places(after), ["new:6000"]);
    }
}

#[test]
fn an_address_is_given_as_it_is() {
    let fixed = Address {
        hostaddr: Some("10.0.0.9".to_owned()),
        ..to("new", 1)
    };
    assert_eq!(
        changed("hostaddr=10.0.0.1 port=5", &fixed),
        "host=new hostaddr=10.0.0.9 port=1"
    );
    assert_eq!(
        changed("hostaddr=10.0.0.1", &to("10.0.0.2", 1)),
        "host=10.0.0.2 port=1 hostaddr=10.0.0.2"
    );
    assert_eq!(
        changed("postgres://old/x", &to("fe80::1", 7)),
        "postgres://[fe80::1]:7/x"
    );
    assert_eq!(
        changed("host=old", &to("fe80::1", 7)),
        "port=7 host=fe80::1"
    );
}

#[test]
fn it_is_known_where_it_leads() {
    assert_eq!(places("host=a,b port=1,2"), ["a:1", "b:2"]);
    assert_eq!(places("host=a,b port=1"), ["a:1", "b:1"]);
    assert_eq!(places("host=a host=b"), ["b:5432"]);
    assert_eq!(places("user=rep"), Vec::<String>::new());
    assert_eq!(places("postgres://a:1,[::1]:2/x"), ["a:1", "[::1]:2"]);
    assert_eq!(places("hostaddr=10.0.0.1"), ["10.0.0.1:5432"]);
    assert!(read("host=a,b target_session_attrs=read-write").finds_the_primary());
    assert!(!read("host=a,b").finds_the_primary());
    assert!(read("  ").is_empty());
}

/// The rest of a password may look like a host.
#[test]
fn what_may_be_meant_otherwise_is_not_read_and_not_shown() {
    for text in [
        "postgres://rep:p@ss@old/x",
        "host='old",
        "host",
        "= x",
        "postgres://old?host",
        "postgres://[::1/x",
    ] {
        assert!(PrimaryConninfo::read(text.to_owned()).is_none(), "{text}");
    }
    for text in ["host='p w'", "host=a,b port=1,2,3", "host=a port=x"] {
        assert!(read(text).addresses().is_none(), "{text}");
    }
    let secret = read("host=a password=geheim");
    assert!(!format!("{secret:?}").contains("geheim"));
}

/// A value as somebody may write it, and what it means.
fn some_value() -> impl Strategy<Value = (String, String)> {
    let quote = |value: String| {
        let escaped = value.replace('\\', r"\\").replace('\'', r"\'");
        (format!("'{escaped}'"), value)
    };
    let bare = "[a-zA-Z0-9=@:/_.-]{1,8}".prop_map(|value| (value.clone(), value));
    prop_oneof![bare, r#"[a-z '\\=@]{0,8}"#.prop_map(quote)]
}

fn of_another_reader(text: &str) -> Vec<(String, String)> {
    let parsed = ConnString::parse(text).map_err(|_| ()).unwrap();
    let params = parsed.params.iter();
    let mut all: Vec<_> = params
        .map(|param| (param.name.clone(), param.value.clone()))
        .collect();
    all.push(("user".to_owned(), parsed.user.unwrap_or_default()));
    all.push(("password".to_owned(), {
        let password = parsed.password.unwrap_or_default();
        String::from_utf8(password).unwrap()
    }));
    all
}

proptest! {
    #[test]
    fn whatever_else_it_says_it_goes_on_saying(
        user in some_value(),
        password in some_value(),
        name in some_value(),
        options in some_value(),
        host in proptest::option::of("[a-z]{1,5}"),
        port in proptest::option::of(1..9999_u16),
        order in Just((0..6).collect::<Vec<usize>>()).prop_shuffle(),
        spaces in "[ \t]{1,3}",
    ) {
        let all = [
            Some(format!("user={}", user.0)),
            Some(format!("password={}", password.0)),
            Some(format!("application_name={}", name.0)),
            Some(format!("options={}", options.0)),
            host.map(|host| format!("host={host}")),
            port.map(|port| format!("port={port}")),
        ];
        let parts: Vec<String> = order.iter().filter_map(|place| all[*place].clone()).collect();
        let before = parts.join(&spaces);
        let after = changed(&before, &to("new.example", 6000));
        prop_assert_eq!(of_another_reader(&before), of_another_reader(&after));
        prop_assert_eq!(places(&after), ["new.example:6000"]);
        // Whoever does the same again changes nothing.
        prop_assert_eq!(changed(&after, &to("new.example", 6000)), after);
    }

    #[test]
    fn a_uri_goes_on_saying_all_else(
        user in "[a-z%@:/ ']{1,6}",
        password in "[a-z%@:/ '&?=]{0,6}",
        name in "[a-z%@:/ '&?=]{0,6}",
        port in proptest::option::of(1..9999_u16),
    ) {
        let escape = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        let before = format!(
            "postgresql://{}:{}@old{port}/postgres?application_name={}&sslmode=require",
            escape(&user), escape(&password), escape(&name),
        );
        let after = changed(&before, &to("new", 6000));
        prop_assert_eq!(of_another_reader(&before), of_another_reader(&after));
        prop_assert_eq!(places(&after), ["new:6000"]);
    }

    /// Whatever is written there ends in a value or nothing.
    #[test]
    fn any_text_is_read_or_not(text in ".{0,40}") {
        if let Some(read) = PrimaryConninfo::read(text) {
            if let Some(changed) = read.leading_to(&to("new", 1)) {
                prop_assert_eq!(changed.addresses().unwrap().len(), 1);
            }
        }
    }
}
