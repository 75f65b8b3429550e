//! Asks the source of credentials, no more often than it has to.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Mutex;

use super::{Credential, Credentials, CredentialsError, LoginRequest};

/// So long before its end a credential is not used any more.
const MARGIN: Duration = Duration::from_secs(60);

/// A credential, and which answer of the source it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) credential: Credential,
    number: u64,
}

/// The source of credentials of one node, and its last answer.
pub(crate) struct Keeper {
    source: Arc<dyn Credentials>,
    last: Mutex<Option<Answer>>,
}

struct Answer {
    given: Given,
    /// When the source was asked.
    asked: Instant,
    /// From then on it is not used any more; `None` if it only serves those who waited for it.
    until: Option<SystemTime>,
}

impl Keeper {
    pub(crate) fn new(source: Arc<dyn Credentials>) -> Self {
        Self {
            source,
            last: Mutex::new(None),
        }
    }

    /// What to log in with. `refused` is what the server has refused.
    ///
    /// Whoever comes while the source is being asked waits for its answer.
    pub(crate) async fn ask(
        &self,
        login: &LoginRequest,
        refused: Option<&Given>,
    ) -> Result<Given, CredentialsError> {
        let came = Instant::now();
        let mut last = self.last.lock().await;
        let number = match &*last {
            Some(answer) if answer.serves(came, refused) => return Ok(answer.given.clone()),
            Some(answer) => answer.given.number + 1,
            None => 0,
        };
        let (asked, now) = (Instant::now(), SystemTime::now());
        let credential = self.source.credential(login).await?;
        let until = credential.expires.map(|expires| {
            let left = expires.duration_since(now).unwrap_or_default();
            expires - MARGIN.min(left / 10)
        });
        let given = Given { credential, number };
        *last = Some(Answer {
            given: given.clone(),
            asked,
            until,
        });
        Ok(given)
    }
}

impl Answer {
    /// Whether it does for somebody who came then.
    fn serves(&self, came: Instant, refused: Option<&Given>) -> bool {
        if refused.is_some_and(|refused| refused.number >= self.given.number) {
            return false;
        }
        let is_fresh = self.until.is_some_and(|until| SystemTime::now() < until);
        // The source was asked after this one came, so it has heard the newest.
        is_fresh || self.asked >= came
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::future::join_all;

    use super::*;
    use crate::credentials::from_fn;

    fn login() -> LoginRequest {
        LoginRequest {
            node: "db1".to_owned(),
            host: "db1".to_owned(),
            port: 5432,
            user: "app".to_owned(),
            dbname: "app".to_owned(),
        }
    }

    /// A source that counts its answers, of which each is good for `valid`.
    fn counted(valid: Option<Duration>) -> (Keeper, Arc<AtomicU32>) {
        let count = Arc::<AtomicU32>::default();
        let asked = Arc::clone(&count);
        let source = from_fn(move |_| {
            let number = asked.fetch_add(1, Ordering::AcqRel);
            async move {
                tokio::task::yield_now().await;
                let answer = Credential::new(number.to_string());
                Ok(match valid {
                    Some(valid) => answer.expires_in(valid),
                    None => answer,
                })
            }
        });
        (Keeper::new(Arc::new(source)), count)
    }

    #[tokio::test]
    async fn without_an_end_each_connection_asks() {
        let (keeper, count) = counted(None);
        for _ in 0..3 {
            keeper.ask(&login(), None).await.unwrap();
        }
        assert_eq!(count.load(Ordering::Acquire), 3);
    }

    #[tokio::test]
    async fn until_its_end_an_answer_is_kept() {
        let (keeper, count) = counted(Some(Duration::from_secs(900)));
        for _ in 0..3 {
            keeper.ask(&login(), None).await.unwrap();
        }
        assert_eq!(count.load(Ordering::Acquire), 1);
        let (keeper, count) = counted(Some(Duration::ZERO));
        for _ in 0..3 {
            keeper.ask(&login(), None).await.unwrap();
        }
        assert_eq!(count.load(Ordering::Acquire), 3, "it has expired");
    }

    #[tokio::test]
    async fn those_who_wait_share_one_answer() {
        let (keeper, count) = counted(None);
        let request = login();
        let answers = join_all((0..50).map(|_| keeper.ask(&request, None))).await;
        let first = answers[0].as_ref().unwrap().number;
        assert_eq!(first, 0);
        // The first one asks; all others came while it did, and of them one asks for all.
        assert!(count.load(Ordering::Acquire) <= 2, "{count:?}");
    }

    #[tokio::test]
    async fn what_was_refused_is_asked_for_once_for_all() {
        let (keeper, count) = counted(Some(Duration::from_secs(900)));
        let old = keeper.ask(&login(), None).await.unwrap();
        let request = login();
        let answers = join_all((0..20).map(|_| keeper.ask(&request, Some(&old)))).await;
        let passwords: Vec<_> = answers
            .into_iter()
            .map(|answer| answer.unwrap().credential.password)
            .collect();
        assert!(passwords.iter().all(|password| password == b"1"));
        assert_eq!(count.load(Ordering::Acquire), 2);
    }

    #[tokio::test]
    async fn a_failure_is_not_kept() {
        let tries = Arc::<AtomicU32>::default();
        let count = Arc::clone(&tries);
        let keeper = Keeper::new(Arc::new(from_fn(move |_| {
            let first = count.fetch_add(1, Ordering::AcqRel) == 0;
            async move {
                if first {
                    return Err("the vault is sealed".into());
                }
                Ok(Credential::new("secret"))
            }
        })));
        let error = keeper.ask(&login(), None).await.unwrap_err();
        assert_eq!(error.to_string(), "the vault is sealed");
        let given = keeper.ask(&login(), None).await.unwrap();
        assert_eq!(given.credential.password, b"secret");
        assert!(!format!("{given:?}").contains("secret"));
    }
}
