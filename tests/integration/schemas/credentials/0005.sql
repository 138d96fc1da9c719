-- SPDX-License-Identifier: Apache-2.0
BEGIN TRANSACTION;
CREATE TABLE agents (
	agent_id VARCHAR NOT NULL, 
	signing_public_key BLOB NOT NULL, 
	sealing_public_key BLOB NOT NULL, 
	create_time_us BIGINT NOT NULL, replaced_signing_key BLOB, 
	CONSTRAINT pk_agents PRIMARY KEY (agent_id), 
	CONSTRAINT uq_agents_signing_public_key UNIQUE (signing_public_key), 
	CONSTRAINT uq_agents_sealing_public_key UNIQUE (sealing_public_key)
);
INSERT INTO "agents" VALUES('agents.agent_id é',X'006167656E74732E7369676E696E675F7075626C69635F6B6579',X'006167656E74732E7365616C696E675F7075626C69635F6B6579',2169,X'006167656E74732E7265706C616365645F7369676E696E675F6B6579');
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0005');
CREATE TABLE audit_heads (
	log VARCHAR NOT NULL, 
	sequence BIGINT NOT NULL, 
	record_hash BLOB NOT NULL, 
	seen_time_us BIGINT NOT NULL, 
	contradiction VARCHAR NOT NULL, 
	CONSTRAINT pk_audit_heads PRIMARY KEY (log)
);
INSERT INTO "audit_heads" VALUES('audit_heads.log é',2050,X'0061756469745F68656164732E7265636F72645F68617368',2473,'audit_heads.contradiction é');
CREATE TABLE credentials (
	credential_id VARCHAR NOT NULL, 
	request_id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	version INTEGER NOT NULL, 
	key_id VARCHAR NOT NULL, 
	wrapped_key BLOB NOT NULL, 
	ciphertext BLOB NOT NULL, 
	create_time_us BIGINT NOT NULL, 
	rotate_time_us BIGINT NOT NULL, bound_to VARCHAR DEFAULT '' NOT NULL, first_key_id VARCHAR DEFAULT '' NOT NULL, 
	CONSTRAINT pk_credentials PRIMARY KEY (credential_id), 
	CONSTRAINT uq_credentials_request_id UNIQUE (request_id), 
	CONSTRAINT uq_credentials_name UNIQUE (name)
);
INSERT INTO "credentials" VALUES('credentials.credential_id é','credentials.request_id é','credentials.name é',1986,'credentials.key_id é',X'0063726564656E7469616C732E777261707065645F6B6579',X'0063726564656E7469616C732E63697068657274657874',2693,2720,'credentials.bound_to é','credentials.first_key_id é');
CREATE TABLE grants (
	credential_id VARCHAR NOT NULL, 
	agent_id VARCHAR NOT NULL, 
	create_time_us BIGINT NOT NULL, 
	CONSTRAINT pk_grants PRIMARY KEY (credential_id, agent_id), 
	CONSTRAINT fk_grants_credential_id FOREIGN KEY(credential_id) REFERENCES credentials (credential_id) ON DELETE CASCADE, 
	CONSTRAINT fk_grants_agent_id FOREIGN KEY(agent_id) REFERENCES agents (agent_id) ON DELETE CASCADE
);
INSERT INTO "grants" VALUES('credentials.credential_id é','agents.agent_id é',2182);
CREATE TABLE leases (
	lease_id VARCHAR NOT NULL, 
	credential_id VARCHAR NOT NULL, 
	agent_id VARCHAR NOT NULL, 
	operation INTEGER NOT NULL, 
	subject_id VARCHAR NOT NULL, 
	expire_time_us BIGINT NOT NULL, 
	redeem_time_us BIGINT, end_time_us BIGINT, end_cause VARCHAR, end_reason INTEGER, 
	CONSTRAINT pk_leases PRIMARY KEY (lease_id), 
	CONSTRAINT fk_leases_credential_id FOREIGN KEY(credential_id) REFERENCES credentials (credential_id) ON DELETE CASCADE, 
	CONSTRAINT fk_leases_agent_id FOREIGN KEY(agent_id) REFERENCES agents (agent_id) ON DELETE CASCADE
);
INSERT INTO "leases" VALUES('leases.lease_id é','credentials.credential_id é','agents.agent_id é',1660,'leases.subject_id é',2189,2162,1847,'leases.end_cause é',1737);
CREATE INDEX ix_leases_credential_id ON leases (credential_id);
CREATE INDEX ix_leases_agent_id ON leases (agent_id);
CREATE INDEX ix_leases_expire_time_us ON leases (expire_time_us);
CREATE INDEX ix_grants_agent_id ON grants (agent_id);
COMMIT;
