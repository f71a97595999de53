//! What answers readers: the backends that may be asked, and what a listener hands over to them.

use std::sync::Arc;

use tokio::runtime::Handle;

use super::StartError;
use crate::config::{Backend as BackendConfig, Config, Incomplete, SelectInto};
use crate::deliver::statements::{Asker, NotRun, Scope, Statements};
use crate::deliver::{Backend, Health, Reads};
use crate::journal::{BackendId, Journal};
use crate::net::SecretFile;
use crate::pair::Pair;
use crate::query::{Readers, Settings};
use crate::receive::http::{Order, Reader, Refused};

/// The backends that readers may be sent to.
pub(super) fn readers(
    config: &Config,
    backends: &[Backend],
    healths: &[Arc<Health>],
    (journal, pair): (&Journal, Option<Arc<Pair>>),
) -> Result<Readers, StartError> {
    let mut asked = Vec::new();
    let all = config.backend.iter().zip(backends).zip(healths).enumerate();
    let moved = journal.moved_from();
    // Who is there now is not known before an operator says so.
    for (index, ((known, backend), health)) in all.filter(|(index, _)| moved[*index].is_none()) {
        if let Some(upstream) = backend.upstream(&reads(known))? {
            asked.push((known.name.clone(), BackendId::new(index), upstream, Arc::clone(health), known.query));
        }
    }
    Ok(Readers::new(asked, (journal.clone(), pair), settings(config)))
}

/// How questions are answered.
pub(super) fn settings(config: &Config) -> Settings {
    Settings {
        max_lag: config.query.max_lag,
        serves_incomplete: config.query.incomplete == Incomplete::Serve,
        timeout: config.query.timeout,
        max_concurrent: usize::from(config.query.max_concurrent),
        is_sticky: config.query.sticky,
    }
}

/// What listeners ask: questions on their own thread, statements on the backends' runtime.
pub(super) fn reader(
    readers: &Arc<Readers>,
    statements: &Arc<Statements>,
    runtime: &Handle,
    config: &Config,
) -> Option<Reader> {
    if readers.is_empty() {
        return None;
    }
    let (readers, statements, runtime) = (Arc::clone(readers), Arc::clone(statements), runtime.clone());
    let answer = move |question| {
        let readers = Arc::clone(&readers);
        Box::pin(async move { readers.answer(question).await }) as _
    };
    let order = move |order: Order| {
        let statements = Arc::clone(&statements);
        let asker =
            if order.may_administer { Asker::Administrator } else { Asker::Client(order.authorization.clone()) };
        // It goes on where the client is gone: half of a statement would be worse.
        let running = runtime.spawn(async move {
            let Order { statement, default, database, touches_points, .. } = order;
            let scope = match database {
                _ if !touches_points => Scope::NoPoints,
                Some(database) => Scope::Database(database),
                None => Scope::Everything,
            };
            statements.order(&statement, (default, scope), asker).await
        });
        Box::pin(async move {
            match running.await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(NotRun::Refused(error))) => Err(Refused::Told(error)),
                Ok(Err(NotRun::NoBackend(why))) => Err(Refused::NoBackend(why)),
                Err(error) => Err(Refused::NoBackend(error.to_string())),
            }
        }) as _
    };
    Some(Reader::new(answer, order, config.query.select_into == SelectInto::All))
}

fn reads(backend: &BackendConfig) -> Reads {
    let user = backend.query_username.clone().zip(backend.query_password_file.clone());
    match (user, backend.query_token_file.clone()) {
        (Some((user, file)), _) => Reads::AsUser(user, SecretFile::new(file)),
        (None, Some(file)) => Reads::WithToken(SecretFile::new(file)),
        (None, None) => Reads::AsClient,
    }
}
