//! PostgreSQL's dialect for the parser, with an end to the steps that one text may take.
//!
//! The parser reads what may be two things as the one, and on failure as the other. Nested, each level
//! doubles the time: `position(position(…` or `IN (SELECT ~ IN (SELECT ~ …`.

use std::any::TypeId;
use std::cell::Cell;

use sqlparser::ast::Expr;
use sqlparser::dialect::{Dialect, PostgreSqlDialect, Precedence};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};

/// Steps for any text, and for each of its tokens. What people write takes one or two for each token.
const STEPS: usize = 4096;
const STEPS_OF_TOKEN: usize = 16;

/// PostgreSQL's dialect, until the steps are used up.
#[derive(Debug)]
pub(super) struct Bounded {
    postgres: PostgreSqlDialect,
    left: Cell<usize>,
}

impl Bounded {
    /// For a text of so many tokens.
    pub(super) fn new(tokens: usize) -> Self {
        let steps = tokens.saturating_mul(STEPS_OF_TOKEN);
        Self {
            postgres: PostgreSqlDialect {},
            left: Cell::new(steps.saturating_add(STEPS)),
        }
    }

    /// One step more. The parser tries no other reading after this error.
    fn step(&self) -> Result<(), ParserError> {
        let left = self.left.get().checked_sub(1);
        self.left
            .set(left.ok_or(ParserError::RecursionLimitExceeded)?);
        Ok(())
    }
}

macro_rules! as_postgres {
    ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {$(
        fn $name(&self, $($argument: $type),*) -> $answer {
            self.postgres.$name($($argument),*)
        }
    )*};
}

impl Dialect for Bounded {
    /// What the parser compares, where it does not ask.
    fn dialect(&self) -> TypeId {
        self.postgres.dialect()
    }

    fn parse_prefix(&self, parser: &mut Parser<'_>) -> Option<Result<Expr, ParserError>> {
        match self.step() {
            Ok(()) => self.postgres.parse_prefix(parser),
            Err(end) => Some(Err(end)),
        }
    }

    fn get_next_precedence(&self, parser: &Parser<'_>) -> Option<Result<u8, ParserError>> {
        match self.step() {
            Ok(()) => self.postgres.get_next_precedence(parser),
            Err(end) => Some(Err(end)),
        }
    }

    // All that it says otherwise than other dialects.
    as_postgres! {
        identifier_quote_style(identifier: &str) -> Option<char>;
        is_delimited_identifier_start(ch: char) -> bool;
        is_identifier_start(ch: char) -> bool;
        is_identifier_part(ch: char) -> bool;
        supports_unicode_string_literal() -> bool;
        is_reserved_for_identifier(kw: Keyword) -> bool;
        is_table_alias(kw: &Keyword, parser: &mut Parser<'_>) -> bool;
        is_custom_operator_part(ch: char) -> bool;
        supports_filter_during_aggregation() -> bool;
        supports_group_by_expr() -> bool;
        supports_alter_user_as_alter_role() -> bool;
        prec_value(prec: Precedence) -> u8;
        allow_extract_custom() -> bool;
        allow_extract_single_quotes() -> bool;
        supports_create_index_with_clause() -> bool;
        supports_explain_with_utility_options() -> bool;
        supports_listen_notify() -> bool;
        supports_exclude_constraint() -> bool;
        supports_factorial_operator() -> bool;
        supports_bitwise_shift_operators() -> bool;
        supports_comment_on() -> bool;
        supports_load_extension() -> bool;
        supports_named_fn_args_with_colon_operator() -> bool;
        supports_named_fn_args_with_expr_name() -> bool;
        supports_empty_projections() -> bool;
        supports_nested_comments() -> bool;
        supports_string_escape_constant() -> bool;
        supports_numeric_literal_underscores() -> bool;
        supports_array_typedef_with_brackets() -> bool;
        supports_geometric_types() -> bool;
        supports_order_by_using_operator() -> bool;
        supports_set_names() -> bool;
        supports_alter_column_type_using() -> bool;
        supports_left_associative_joins_without_parens() -> bool;
        supports_notnull_operator() -> bool;
        supports_interval_options() -> bool;
        supports_insert_table_alias() -> bool;
        supports_create_table_like_parenthesized() -> bool;
        supports_select_wildcard_with_alias() -> bool;
        supports_comma_separated_trim() -> bool;
        supports_xml_expressions() -> bool;
        supports_aliased_function_args() -> bool;
        supports_comment_optimizer_hint() -> bool;
    }
}
