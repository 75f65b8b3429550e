//! What is known of PostgreSQL's own functions and key words before any catalog is read.
//!
//! Every list is sorted, for binary search.

/// Functions of `pg_catalog` that are immutable or stable and harmless on a standby.
#[rustfmt::skip]
pub(super) const WELL_KNOWN: &[&str] = &[
    "abs", "acos", "acosd", "acosh", "age", "any_value", "area", "array_agg", "array_append",
    "array_cat", "array_dims", "array_fill", "array_length", "array_lower", "array_ndims",
    "array_position", "array_positions", "array_prepend", "array_remove", "array_replace",
    "array_reverse", "array_sort", "array_to_json", "array_to_string", "array_to_tsvector",
    "array_upper", "ascii", "asin", "asind", "asinh", "atan", "atan2", "atan2d", "atand", "atanh",
    "avg", "bit_and", "bit_count", "bit_length", "bit_or", "bit_xor", "bool_and", "bool_or",
    "bound_box", "box", "broadcast", "btrim", "cardinality", "casefold", "cbrt", "ceil",
    "ceiling", "center", "char_length", "character_length", "chr", "circle", "col_description",
    "concat", "concat_ws", "convert", "convert_from", "convert_to", "corr", "cos", "cosd", "cosh",
    "cot", "cotd", "count", "covar_pop", "covar_samp", "crc32", "crc32c", "cume_dist",
    "current_database", "current_schema", "current_schemas", "current_setting", "date",
    "date_add", "date_bin", "date_part", "date_subtract", "date_trunc", "datemultirange",
    "daterange", "decode", "degrees", "dense_rank", "diagonal", "diameter", "div", "encode",
    "enum_first", "enum_last", "enum_range", "erf", "erfc", "every", "exp", "extract",
    "factorial", "family", "first_value", "floor", "format", "format_type", "gamma", "gcd",
    "generate_series", "generate_subscripts", "get_bit", "get_byte", "get_current_ts_config",
    "has_any_column_privilege", "has_column_privilege", "has_database_privilege",
    "has_foreign_data_wrapper_privilege", "has_function_privilege", "has_language_privilege",
    "has_parameter_privilege", "has_schema_privilege", "has_sequence_privilege",
    "has_server_privilege", "has_table_privilege", "has_tablespace_privilege",
    "has_type_privilege", "height", "host", "hostmask", "inet_client_addr",
    "inet_merge", "inet_same_family", "initcap", "int4multirange", "int4range", "int8multirange",
    "int8range", "is_normalized", "isclosed", "isempty", "isfinite", "isopen", "json_agg",
    "json_agg_strict", "json_array_elements", "json_array_elements_text", "json_array_length",
    "json_build_array", "json_build_object", "json_each", "json_each_text", "json_extract_path",
    "json_extract_path_text", "json_object", "json_object_agg", "json_object_agg_strict",
    "json_object_agg_unique", "json_object_agg_unique_strict", "json_object_keys",
    "json_populate_record", "json_populate_recordset", "json_strip_nulls", "json_to_record",
    "json_to_recordset", "json_typeof", "jsonb_agg", "jsonb_agg_strict", "jsonb_array_elements",
    "jsonb_array_elements_text", "jsonb_array_length", "jsonb_build_array", "jsonb_build_object",
    "jsonb_each", "jsonb_each_text", "jsonb_extract_path", "jsonb_extract_path_text",
    "jsonb_insert", "jsonb_object", "jsonb_object_agg", "jsonb_object_agg_strict",
    "jsonb_object_agg_unique", "jsonb_object_agg_unique_strict", "jsonb_object_keys",
    "jsonb_path_exists", "jsonb_path_exists_tz", "jsonb_path_match", "jsonb_path_match_tz",
    "jsonb_path_query", "jsonb_path_query_array", "jsonb_path_query_array_tz",
    "jsonb_path_query_first", "jsonb_path_query_first_tz", "jsonb_path_query_tz",
    "jsonb_populate_record", "jsonb_populate_recordset", "jsonb_pretty", "jsonb_set",
    "jsonb_set_lax", "jsonb_strip_nulls", "jsonb_to_record", "jsonb_to_recordset",
    "jsonb_to_tsvector", "jsonb_typeof", "justify_days", "justify_hours", "justify_interval",
    "lag", "last_value", "lcm", "lead", "left", "length", "lgamma", "line", "ln", "log", "log10",
    "lower", "lower_inc", "lower_inf", "lpad", "lseg", "ltrim", "macaddr8_set7bit", "make_date",
    "make_interval", "make_time", "make_timestamp", "make_timestamptz", "masklen", "max", "md5",
    "min", "min_scale", "mod", "mode", "multirange", "netmask", "network", "normalize", "now",
    "npoints", "nth_value", "ntile", "num_nonnulls", "num_nulls", "nummultirange", "numnode",
    "numrange", "obj_description", "octet_length", "overlaps", "overlay", "parse_ident", "pclose",
    "percent_rank", "percentile_cont", "percentile_disc", "pg_client_encoding",
    "pg_collation_for", "pg_column_compression", "pg_column_size", "pg_describe_object",
    "pg_encoding_to_char", "pg_filenode_relation", "pg_function_is_visible",
    "pg_get_constraintdef", "pg_get_expr", "pg_get_function_arguments",
    "pg_get_function_identity_arguments", "pg_get_function_result", "pg_get_function_sqlbody",
    "pg_get_functiondef", "pg_get_indexdef", "pg_get_keywords", "pg_get_partkeydef",
    "pg_get_ruledef", "pg_get_serial_sequence", "pg_get_statisticsobjdef", "pg_get_triggerdef",
    "pg_get_userbyid", "pg_get_viewdef", "pg_has_role", "pg_identify_object", "pg_input_is_valid",
    "pg_is_other_temp_schema", "pg_lsn", "pg_my_temp_schema", "pg_options_to_table",
    "pg_relation_filenode", "pg_relation_filepath", "pg_settings_get_flags", "pg_size_bytes",
    "pg_size_pretty", "pg_snapshot_xip", "pg_snapshot_xmax", "pg_snapshot_xmin",
    "pg_table_is_visible", "pg_tablespace_location", "pg_timezone_abbrevs", "pg_timezone_names",
    "pg_trigger_depth", "pg_type_is_visible", "pg_typeof", "pg_visible_in_snapshot",
    "pg_wal_lsn_diff", "phraseto_tsquery", "pi", "plainto_tsquery", "point", "polygon", "popen",
    "position", "pow", "power", "querytree", "quote_ident", "quote_literal", "quote_nullable",
    "radians", "radius", "range_agg", "range_intersect_agg", "range_merge", "rank",
    "regexp_count", "regexp_instr", "regexp_like", "regexp_match", "regexp_matches",
    "regexp_replace", "regexp_split_to_array", "regexp_split_to_table", "regexp_substr",
    "regr_avgx", "regr_avgy", "regr_count", "regr_intercept", "regr_r2", "regr_slope", "regr_sxx",
    "regr_sxy", "regr_syy", "repeat", "replace", "reverse", "right", "round", "row_number",
    "row_security_active", "row_to_json", "rpad", "rtrim", "scale", "set_bit", "set_byte",
    "set_masklen", "setweight", "sha224", "sha256", "sha384", "sha512", "shobj_description",
    "sign", "sin", "sind", "sinh", "slope", "split_part", "sqrt", "starts_with",
    "statement_timestamp", "stddev", "stddev_pop", "stddev_samp", "string_agg", "string_to_array",
    "string_to_table", "strip", "strpos", "substr", "substring", "sum", "tan", "tand", "tanh",
    "text", "to_ascii", "to_bin", "to_char", "to_date", "to_hex", "to_json", "to_jsonb",
    "to_number", "to_oct", "to_regclass", "to_regnamespace", "to_regproc", "to_regprocedure",
    "to_regrole", "to_regtype", "to_timestamp", "to_tsquery", "to_tsvector",
    "transaction_timestamp", "translate", "trim_array", "trim_scale", "trunc", "ts_delete",
    "ts_filter", "ts_headline", "ts_lexize", "ts_rank", "ts_rank_cd", "tsmultirange",
    "tsquery_phrase", "tsrange", "tstzmultirange", "tstzrange", "txid_snapshot_xip",
    "txid_snapshot_xmax", "txid_snapshot_xmin", "txid_visible_in_snapshot", "unicode_assigned",
    "unicode_version", "unistr", "unnest", "upper", "upper_inc", "upper_inf",
    "uuid_extract_timestamp", "uuid_extract_version", "var_pop", "var_samp", "variance",
    "version", "websearch_to_tsquery", "width", "width_bucket", "xml_is_well_formed",
    "xml_is_well_formed_content", "xml_is_well_formed_document", "xmlagg", "xmlcomment",
    "xmltext", "xpath", "xpath_exists",
];

/// Functions of `pg_catalog` that are volatile, and harmless on a standby all the same.
#[rustfmt::skip]
pub(super) const EXCUSED: &[&str] = &[
    "array_sample", "array_shuffle", "bernoulli", "clock_timestamp", "current_query",
    "gen_random_uuid", "pg_collation_actual_version", "pg_database_collation_actual_version",
    "pg_database_size", "pg_get_wait_events", "pg_indexes_size", "pg_jit_available",
    "pg_partition_ancestors", "pg_partition_tree", "pg_relation_size", "pg_sleep", "pg_sleep_for",
    "pg_sleep_until", "pg_table_size", "pg_tablespace_size", "pg_total_relation_size", "random",
    "random_normal", "system", "timeofday", "timezone", "uuidv4", "uuidv7",
];

/// Functions that belong to the primary: they fail or mislead on a standby, or have effects.
#[rustfmt::skip]
pub(super) const HARMFUL: &[&str] = &[
    "currval", "lastval", "lo_close", "lo_creat", "lo_create", "lo_export", "lo_from_bytea",
    "lo_get", "lo_import", "lo_lseek", "lo_lseek64", "lo_open", "lo_put", "lo_tell", "lo_tell64",
    "lo_truncate", "lo_truncate64", "lo_unlink", "loread", "lowrite", "nextval", "pg_backup_stop",
    "pg_cancel_backend", "pg_clear_attribute_stats", "pg_clear_relation_stats",
    "pg_create_restore_point", "pg_current_wal_flush_lsn", "pg_current_wal_insert_lsn",
    "pg_current_wal_lsn", "pg_current_xact_id", "pg_drop_replication_slot", "pg_export_snapshot",
    "pg_log_standby_snapshot", "pg_logical_emit_message", "pg_logical_slot_get_binary_changes",
    "pg_logical_slot_get_changes", "pg_logical_slot_peek_binary_changes",
    "pg_logical_slot_peek_changes", "pg_notify", "pg_promote", "pg_reload_conf",
    "pg_replication_slot_advance", "pg_restore_attribute_stats", "pg_restore_relation_stats",
    "pg_rotate_logfile", "pg_split_walfile_name", "pg_stat_clear_snapshot",
    "pg_stat_force_next_flush", "pg_stat_reset", "pg_stat_reset_backend_stats",
    "pg_stat_reset_replication_slot", "pg_stat_reset_shared",
    "pg_stat_reset_single_function_counters", "pg_stat_reset_single_table_counters",
    "pg_stat_reset_slru", "pg_stat_reset_subscription_stats", "pg_stop_backup", "pg_switch_wal",
    "pg_sync_replication_slots", "pg_terminate_backend", "pg_wal_replay_pause",
    "pg_wal_replay_resume", "pg_walfile_name", "pg_walfile_name_offset", "pg_xact_status",
    "setval", "txid_current", "txid_status",
];

/// Functions that tell of the server that is asked, or of what it has done for this connection. A standby
/// tells of itself. So do those whose names begin with [`OF_SERVER_PREFIXES`].
#[rustfmt::skip]
pub(super) const OF_SERVER: &[&str] = &[
    "inet_client_port", "inet_server_addr", "inet_server_port", "mxid_age", "pg_backend_pid", "pg_blocking_pids",
    "pg_conf_load_time", "pg_control_checkpoint", "pg_control_init", "pg_control_recovery",
    "pg_control_system", "pg_current_logfile", "pg_current_snapshot",
    "pg_current_xact_id_if_assigned", "pg_cursor", "pg_get_aios",
    "pg_get_backend_memory_contexts", "pg_get_replication_slots", "pg_get_shmem_allocations",
    "pg_get_shmem_allocations_numa", "pg_get_wal_replay_pause_state", "pg_hba_file_rules",
    "pg_ident_file_mappings", "pg_is_in_recovery", "pg_is_wal_replay_paused",
    "pg_last_committed_xact", "pg_last_wal_receive_lsn", "pg_last_wal_replay_lsn",
    "pg_last_xact_replay_timestamp", "pg_listening_channels", "pg_lock_status",
    "pg_notification_queue_usage", "pg_postmaster_start_time", "pg_prepared_statement",
    "pg_prepared_xact", "pg_read_binary_file", "pg_read_file", "pg_replication_origin_oid",
    "pg_replication_origin_progress", "pg_replication_origin_session_is_setup",
    "pg_replication_origin_session_progress", "pg_safe_snapshot_blocking_pids",
    "pg_sequence_last_value", "pg_show_all_file_settings", "pg_show_all_settings",
    "pg_show_replication_origin_status", "pg_stat_file", "pg_xact_commit_timestamp",
    "pg_xact_commit_timestamp_origin", "txid_current_if_assigned", "txid_current_snapshot",
];

/// How the names of functions and views begin that tell of the server that is asked.
pub(super) const OF_SERVER_PREFIXES: &[&str] = &["pg_ls_", "pg_stat_", "pg_statio_"];

/// Views that tell of the server that is asked.
#[rustfmt::skip]
pub(super) const VIEWS_OF_SERVER: &[&str] = &[
    "pg_aios", "pg_backend_memory_contexts", "pg_cursors", "pg_dsm_registry_allocations",
    "pg_file_settings", "pg_hba_file_rules", "pg_ident_file_mappings", "pg_locks",
    "pg_prepared_statements", "pg_prepared_xacts", "pg_replication_origin_status",
    "pg_replication_slots", "pg_sequences", "pg_settings", "pg_shmem_allocations",
    "pg_shmem_allocations_numa",
];

/// Settings that tell whether the server is a standby, or that a standby must have otherwise.
#[rustfmt::skip]
pub(super) const SETTINGS_OF_SERVER: &[&str] = &[
    "all", "config_file", "data_directory", "default_transaction_isolation",
    "default_transaction_read_only", "hba_file", "ident_file", "in_hot_standby", "port",
    "primary_conninfo", "primary_slot_name", "transaction_isolation", "transaction_read_only",
];

/// Functions that take an advisory lock until the transaction ends.
#[rustfmt::skip]
pub(super) const LOCKS: &[&str] = &[
    "pg_advisory_xact_lock", "pg_advisory_xact_lock_shared", "pg_try_advisory_xact_lock",
    "pg_try_advisory_xact_lock_shared",
];

/// Functions that run the SQL of a text that they are given, here or on another server.
#[rustfmt::skip]
pub(super) const RUNS_SQL: &[&str] = &[
    "connectby", "crosstab", "crosstab2", "crosstab3", "crosstab4", "cursor_to_xml",
    "cursor_to_xmlschema", "database_to_xml", "database_to_xml_and_xmlschema",
    "database_to_xmlschema", "dblink", "dblink_close", "dblink_disconnect", "dblink_exec",
    "dblink_fetch", "dblink_open", "dblink_send_query", "query_to_xml",
    "query_to_xml_and_xmlschema", "query_to_xmlschema", "schema_to_xml",
    "schema_to_xml_and_xmlschema", "schema_to_xmlschema", "table_to_xml",
    "table_to_xml_and_xmlschema", "table_to_xmlschema", "ts_rewrite", "ts_stat", "xpath_table",
];

/// Functions that set what the session remembers.
#[rustfmt::skip]
pub(super) const SESSION_SETTINGS: &[&str] = &[
    "set_config", "setseed",
];

/// Functions that take or release what the session holds.
#[rustfmt::skip]
pub(super) const SESSION_LOCKS: &[&str] = &[
    "pg_advisory_lock", "pg_advisory_lock_shared",
    "pg_advisory_unlock", "pg_advisory_unlock_all", "pg_advisory_unlock_shared",
    "pg_try_advisory_lock", "pg_try_advisory_lock_shared",
];

/// Functions that take what only the end of the session gives back.
#[rustfmt::skip]
pub(super) const INDELIBLE: &[&str] = &[
    "dblink_connect", "dblink_connect_u", "pg_backup_start", "pg_copy_logical_replication_slot",
    "pg_copy_physical_replication_slot", "pg_create_logical_replication_slot",
    "pg_create_physical_replication_slot", "pg_replication_origin_session_reset",
    "pg_replication_origin_session_setup", "pg_start_backup",
];

/// Key words that a parenthesis may follow and that cannot name a function.
#[rustfmt::skip]
pub(super) const KEYWORDS: &[&str] = &[
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "between",
    "bigint", "bit", "boolean", "both", "case", "cast", "char", "character", "check",
    "coalesce", "collate", "column", "constraint", "create", "current_time",
    "current_timestamp", "dec", "decimal", "default", "deferrable", "desc", "distinct", "do",
    "else", "end", "except", "exists", "fetch", "float", "for", "foreign", "from", "grant",
    "greatest", "group", "grouping", "having", "in", "initially", "int", "integer", "intersect",
    "interval", "into", "lateral", "leading", "least", "limit", "localtime", "localtimestamp",
    "national", "nchar", "none", "not", "nullif", "numeric", "offset", "on", "only", "or",
    "order", "placing", "precision", "primary", "real", "references", "returning", "row",
    "select", "setof", "smallint", "some", "symmetric", "table", "then", "time", "timestamp",
    "to", "trailing", "treat", "trim", "union", "unique", "user", "using", "values", "varchar",
    "variadic", "when", "where", "window", "with", "xmlattributes", "xmlconcat", "xmlelement",
    "xmlexists", "xmlforest", "xmlnamespaces", "xmlparse", "xmlpi", "xmlroot", "xmlserialize",
    "xmltable",
];

/// Key words that a parenthesis may follow and that could also name a function.
#[rustfmt::skip]
pub(super) const SOFT_KEYWORDS: &[&str] = &[
    "by", "bytea", "columns", "cube", "escape", "filter", "ilike", "join", "json", "json_array",
    "json_arrayagg", "json_exists", "json_objectagg", "json_query", "json_scalar",
    "json_serialize", "json_table", "json_value", "jsonb", "like", "materialized", "operator",
    "over", "regclass", "repeatable", "rollup", "sets", "uuid", "varying",
];

/// Operators of `pg_catalog`; all are harmless.
#[rustfmt::skip]
pub(super) const OPERATORS: &[&str] = &[
    "!!", "!=", "!~", "!~*", "!~~", "!~~*", "#", "##", "#-", "#>", "#>>", "%", "&", "&&", "&<",
    "&<|", "&>", "*", "*<", "*<=", "*<>", "*=", "*>", "*>=", "+", "-", "->", "->>", "-|-", "/",
    "<", "<->", "<<", "<<=", "<<|", "<=", "<>", "<@", "<^", "=", ">", ">=", ">>", ">>=", ">^",
    "?", "?#", "?&", "?-", "?-|", "?|", "?||", "@", "@-@", "@>", "@?", "@@", "@@@", "^", "^@",
    "|", "|&>", "|/", "|>>", "||", "||/", "~", "~*", "~<=~", "~<~", "~=", "~>=~", "~>~", "~~",
    "~~*",
];
