-- SPDX-License-Identifier: Apache-2.0
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0012');
CREATE TABLE audit_heads (
	log VARCHAR NOT NULL, 
	sequence BIGINT NOT NULL, 
	record_hash BLOB NOT NULL, 
	seen_time_us BIGINT NOT NULL, 
	contradiction VARCHAR NOT NULL, 
	CONSTRAINT pk_audit_heads PRIMARY KEY (log)
);
INSERT INTO "audit_heads" VALUES('audit_heads.log é',2050,X'0061756469745F68656164732E7265636F72645F68617368',2473,'audit_heads.contradiction é');
CREATE TABLE hub (
	hub_id VARCHAR NOT NULL, 
	CONSTRAINT pk_hub PRIMARY KEY (hub_id)
);
INSERT INTO "hub" VALUES('hub.hub_id é');
CREATE TABLE invitations (
	site_name VARCHAR NOT NULL, 
	code_hash BLOB NOT NULL, 
	replaced_code_hash BLOB NOT NULL, 
	state BIGINT NOT NULL, 
	rotates BOOLEAN NOT NULL, 
	create_time_us BIGINT NOT NULL, 
	expire_time_us BIGINT NOT NULL, 
	ssh_public_key VARCHAR NOT NULL, 
	fingerprint VARCHAR NOT NULL, 
	signing_public_key BLOB NOT NULL, 
	sealing_public_key BLOB NOT NULL, 
	why VARCHAR NOT NULL, 
	CONSTRAINT pk_invitations PRIMARY KEY (site_name)
);
INSERT INTO "invitations" VALUES('invitations.site_name é',X'00696E7669746174696F6E732E636F64655F68617368',X'00696E7669746174696F6E732E7265706C616365645F636F64655F68617368',1799,2024,2735,2760,'invitations.ssh_public_key é','invitations.fingerprint é',X'00696E7669746174696F6E732E7369676E696E675F7075626C69635F6B6579',X'00696E7669746174696F6E732E7365616C696E675F7075626C69635F6B6579','invitations.why é');
CREATE TABLE job_disks (
	job_id VARCHAR NOT NULL, 
	"key" BIGINT NOT NULL, 
	label VARCHAR NOT NULL, 
	capacity_bytes BIGINT NOT NULL, 
	state BIGINT NOT NULL, 
	mode VARCHAR NOT NULL, 
	mode_reason VARCHAR NOT NULL, 
	planned_read_bytes BIGINT NOT NULL, 
	changed_bytes BIGINT NOT NULL, 
	read_bytes BIGINT NOT NULL, 
	copied_bytes BIGINT NOT NULL, 
	zero_bytes BIGINT NOT NULL, 
	wire_bytes BIGINT NOT NULL, 
	seconds FLOAT NOT NULL, recopied_bytes BIGINT DEFAULT '0' NOT NULL, audited_bytes BIGINT DEFAULT '0' NOT NULL, audit_mismatches BIGINT DEFAULT '0' NOT NULL, 
	CONSTRAINT pk_job_disks PRIMARY KEY (job_id, "key"), 
	CONSTRAINT fk_job_disks_job_id FOREIGN KEY(job_id) REFERENCES jobs (job_id) ON DELETE CASCADE
);
INSERT INTO "job_disks" VALUES('jobs.job_id é',1327,'job_disks.label é',2490,1543,'job_disks.mode é','job_disks.mode_reason é',2889,2358,2056,2272,2092,2083,1749.5,2487,2380,2698);
CREATE TABLE job_interruptions (
	job_id VARCHAR NOT NULL, 
	number BIGINT NOT NULL, 
	interruption BLOB NOT NULL, 
	CONSTRAINT pk_job_interruptions PRIMARY KEY (job_id, number), 
	CONSTRAINT fk_job_interruptions_job_id FOREIGN KEY(job_id) REFERENCES jobs (job_id) ON DELETE CASCADE
);
INSERT INTO "job_interruptions" VALUES('jobs.job_id é',2551,X'006A6F625F696E74657272757074696F6E732E696E74657272757074696F6E');
CREATE TABLE job_plans (
	job_id VARCHAR NOT NULL, 
	snapshot_time_us BIGINT NOT NULL, 
	"plan" BLOB NOT NULL, 
	eras JSON NOT NULL, 
	CONSTRAINT pk_job_plans PRIMARY KEY (job_id), 
	CONSTRAINT fk_job_plans_job_id FOREIGN KEY(job_id) REFERENCES jobs (job_id) ON DELETE CASCADE
);
INSERT INTO "job_plans" VALUES('jobs.job_id é',2731,X'006A6F625F706C616E732E706C616E','["job_plans.eras"]');
CREATE TABLE job_warnings (
	job_id VARCHAR NOT NULL, 
	number BIGINT NOT NULL, 
	code VARCHAR NOT NULL, 
	message VARCHAR NOT NULL, 
	disk_key BIGINT NOT NULL, 
	time_us BIGINT NOT NULL, 
	CONSTRAINT pk_job_warnings PRIMARY KEY (job_id, number), 
	CONSTRAINT fk_job_warnings_job_id FOREIGN KEY(job_id) REFERENCES jobs (job_id) ON DELETE CASCADE
);
INSERT INTO "job_warnings" VALUES('jobs.job_id é',1978,'job_warnings.code é','job_warnings.message é',2180,2087);
CREATE TABLE jobs (
	job_id VARCHAR NOT NULL, 
	request_id VARCHAR NOT NULL, 
	vcenter_name VARCHAR NOT NULL, 
	vm_name VARCHAR NOT NULL, 
	vm_instance_uuid VARCHAR NOT NULL, 
	site_name VARCHAR NOT NULL, 
	repository_name VARCHAR NOT NULL, 
	state BIGINT NOT NULL, 
	phase BIGINT NOT NULL, 
	ended_in_phase BIGINT NOT NULL, 
	attempt BIGINT NOT NULL, 
	mode BIGINT NOT NULL, 
	quiesce BIGINT NOT NULL, 
	quiesce_result VARCHAR NOT NULL, 
	point_id VARCHAR NOT NULL, 
	trace_id VARCHAR NOT NULL, 
	traceparent VARCHAR NOT NULL, 
	failure BLOB NOT NULL, 
	create_time_us BIGINT NOT NULL, 
	start_time_us BIGINT, 
	end_time_us BIGINT, bytes_per_second BIGINT DEFAULT '0' NOT NULL, 
	CONSTRAINT pk_jobs PRIMARY KEY (job_id), 
	CONSTRAINT uq_jobs_request_id UNIQUE (request_id)
);
INSERT INTO "jobs" VALUES('jobs.job_id é','jobs.request_id é','jobs.vcenter_name é','jobs.vm_name é','jobs.vm_instance_uuid é','jobs.site_name é','jobs.repository_name é',1021,1005,1922,1243,897,1227,'jobs.quiesce_result é','jobs.point_id é','jobs.trace_id é','jobs.traceparent é',X'006A6F62732E6661696C757265',1957,1887,1640,2180);
CREATE TABLE operators (
	kind BIGINT NOT NULL, 
	name VARCHAR NOT NULL, 
	role BIGINT NOT NULL, 
	token_sha256 BLOB, 
	create_time_us BIGINT NOT NULL, 
	expire_time_us BIGINT, 
	last_used_time_us BIGINT, 
	CONSTRAINT pk_operators PRIMARY KEY (kind, name), 
	CONSTRAINT uq_operators_token_sha256 UNIQUE (token_sha256)
);
INSERT INTO "operators" VALUES(1459,'operators.name é',1471,X'006F70657261746F72732E746F6B656E5F736861323536',2518,2543,2854);
CREATE TABLE pending_cleanups (
	job_id VARCHAR NOT NULL, 
	vcenter_name VARCHAR NOT NULL, 
	vm_instance_uuid VARCHAR NOT NULL, 
	vm_name VARCHAR NOT NULL, 
	create_time_us BIGINT NOT NULL, 
	CONSTRAINT pk_pending_cleanups PRIMARY KEY (job_id)
);
INSERT INTO "pending_cleanups" VALUES('pending_cleanups.job_id é','pending_cleanups.vcenter_name é','pending_cleanups.vm_instance_uuid é','pending_cleanups.vm_name é',3222);
CREATE TABLE point_disks (
	point_id VARCHAR NOT NULL, 
	"key" BIGINT NOT NULL, 
	label VARCHAR NOT NULL, 
	capacity_bytes BIGINT NOT NULL, 
	mode VARCHAR NOT NULL, 
	mode_reason VARCHAR NOT NULL, 
	layer_file VARCHAR NOT NULL, 
	parent_point_id VARCHAR NOT NULL, 
	stored_bytes BIGINT NOT NULL, 
	copied_bytes BIGINT NOT NULL, 
	change_id VARCHAR NOT NULL, 
	disk_object_id VARCHAR NOT NULL, 
	backing_uuid VARCHAR NOT NULL, verify_time_us BIGINT, damage VARCHAR, damage_time_us BIGINT, damage_seen_from VARCHAR, 
	CONSTRAINT pk_point_disks PRIMARY KEY (point_id, "key"), 
	CONSTRAINT fk_point_disks_point_id FOREIGN KEY(point_id) REFERENCES restore_points (point_id) ON DELETE CASCADE
);
INSERT INTO "point_disks" VALUES('restore_points.point_id é',1566,'point_disks.label é',2729,'point_disks.mode é','point_disks.mode_reason é','point_disks.layer_file é','point_disks.parent_point_id é',2540,2511,'point_disks.change_id é','point_disks.disk_object_id é','point_disks.backing_uuid é',2751,'point_disks.damage é',2697,'point_disks.damage_seen_from é');
CREATE TABLE refused_logins (
	credential_id VARCHAR NOT NULL, 
	vcenter_name VARCHAR NOT NULL, 
	time_us BIGINT NOT NULL, 
	message VARCHAR NOT NULL, 
	CONSTRAINT pk_refused_logins PRIMARY KEY (credential_id)
);
INSERT INTO "refused_logins" VALUES('refused_logins.credential_id é','refused_logins.vcenter_name é',2301,'refused_logins.message é');
CREATE TABLE repositories (
	name VARCHAR NOT NULL, 
	path VARCHAR NOT NULL, 
	repository_id VARCHAR NOT NULL, 
	CONSTRAINT pk_repositories PRIMARY KEY (name)
);
INSERT INTO "repositories" VALUES('repositories.name é','repositories.path é','repositories.repository_id é');
CREATE TABLE restore_points (
	point_id VARCHAR NOT NULL, 
	job_id VARCHAR NOT NULL, 
	vcenter_name VARCHAR NOT NULL, 
	vcenter_uuid VARCHAR NOT NULL, 
	vm_name VARCHAR NOT NULL, 
	vm_instance_uuid VARCHAR NOT NULL, 
	repository_name VARCHAR NOT NULL, 
	directory VARCHAR NOT NULL, 
	state BIGINT NOT NULL, 
	snapshot_time_us BIGINT, 
	complete_time_us BIGINT, 
	quiesce_result VARCHAR NOT NULL, 
	unprotected_disks JSON NOT NULL, 
	CONSTRAINT pk_restore_points PRIMARY KEY (point_id)
);
INSERT INTO "restore_points" VALUES('restore_points.point_id é','restore_points.job_id é','restore_points.vcenter_name é','restore_points.vcenter_uuid é','restore_points.vm_name é','restore_points.vm_instance_uuid é','restore_points.repository_name é','restore_points.directory é',2127,3315,3292,'restore_points.quiesce_result é','["restore_points.unprotected_disks"]');
CREATE TABLE retired_keys (
	fingerprint VARCHAR NOT NULL, 
	site_name VARCHAR NOT NULL, 
	retire_time_us BIGINT NOT NULL, 
	CONSTRAINT pk_retired_keys PRIMARY KEY (fingerprint)
);
INSERT INTO "retired_keys" VALUES('retired_keys.fingerprint é','retired_keys.site_name é',2840);
CREATE TABLE sites (
	name VARCHAR NOT NULL, 
	ssh_public_key VARCHAR NOT NULL, 
	fingerprint VARCHAR NOT NULL, 
	create_time_us BIGINT NOT NULL, revoke_time_us BIGINT, 
	CONSTRAINT pk_sites PRIMARY KEY (name), 
	CONSTRAINT uq_sites_fingerprint UNIQUE (fingerprint)
);
INSERT INTO "sites" VALUES('sites.name é','sites.ssh_public_key é','sites.fingerprint é',2079,2103);
CREATE TABLE spans (
	trace_id VARCHAR NOT NULL, 
	span_id VARCHAR NOT NULL, 
	parent_span_id VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	service VARCHAR NOT NULL, 
	start_ns BIGINT NOT NULL, 
	duration_ns BIGINT NOT NULL, 
	error VARCHAR NOT NULL, 
	attributes JSON NOT NULL, arrival BIGINT, site VARCHAR DEFAULT '' NOT NULL, 
	CONSTRAINT pk_spans PRIMARY KEY (trace_id, span_id)
);
INSERT INTO "spans" VALUES('spans.trace_id é','spans.span_id é','spans.parent_span_id é','spans.name é','spans.service é',1473,1785,'spans.error é','["spans.attributes"]',1348,'spans.site é');
CREATE TABLE trust_events (
	number INTEGER NOT NULL, 
	vcenter_uuid VARCHAR NOT NULL, 
	vm_instance_uuid VARCHAR NOT NULL, 
	disk_key BIGINT NOT NULL, 
	time_us BIGINT NOT NULL, 
	kind VARCHAR NOT NULL, 
	job_id VARCHAR NOT NULL, 
	repository_name VARCHAR NOT NULL, 
	change_id VARCHAR NOT NULL, 
	message VARCHAR NOT NULL, 
	CONSTRAINT pk_trust_events PRIMARY KEY (number)
);
INSERT INTO "trust_events" VALUES(2029,'trust_events.vcenter_uuid é','trust_events.vm_instance_uuid é',2231,2138,'trust_events.kind é','trust_events.job_id é','trust_events.repository_name é','trust_events.change_id é','trust_events.message é');
CREATE TABLE vcenters (
	name VARCHAR NOT NULL, 
	host VARCHAR NOT NULL, 
	port BIGINT NOT NULL, 
	ca_pem VARCHAR NOT NULL, 
	certificate_sha256 BLOB NOT NULL, 
	credential_id VARCHAR NOT NULL, 
	site_name VARCHAR NOT NULL, 
	instance_uuid VARCHAR NOT NULL, 
	create_time_us BIGINT NOT NULL, 
	CONSTRAINT pk_vcenters PRIMARY KEY (name), 
	CONSTRAINT fk_vcenters_site_name FOREIGN KEY(site_name) REFERENCES sites (name)
);
INSERT INTO "vcenters" VALUES('vcenters.name é','vcenters.host é',1373,'vcenters.ca_pem é',X'007663656E746572732E63657274696669636174655F736861323536','vcenters.credential_id é','sites.name é','vcenters.instance_uuid é',2401);
CREATE TABLE virtual_machines (
	vcenter_name VARCHAR NOT NULL, 
	instance_uuid VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	moref VARCHAR NOT NULL, 
	facts BLOB NOT NULL, 
	CONSTRAINT pk_virtual_machines PRIMARY KEY (vcenter_name, instance_uuid), 
	CONSTRAINT fk_virtual_machines_vcenter_name FOREIGN KEY(vcenter_name) REFERENCES vcenters (name) ON DELETE CASCADE
);
INSERT INTO "virtual_machines" VALUES('vcenters.name é','virtual_machines.instance_uuid é','virtual_machines.name é','virtual_machines.moref é',X'007669727475616C5F6D616368696E65732E6661637473');
CREATE INDEX ix_jobs_newest ON jobs (create_time_us, job_id);
CREATE INDEX ix_jobs_state ON jobs (state);
CREATE INDEX ix_jobs_vm_name ON jobs (vm_name);
CREATE INDEX ix_restore_points_job_id ON restore_points (job_id);
CREATE INDEX ix_restore_points_of_vm ON restore_points (vcenter_uuid, vm_instance_uuid, repository_name);
CREATE INDEX ix_restore_points_vm_name ON restore_points (vm_name);
CREATE INDEX ix_point_disks_parent_point_id ON point_disks (parent_point_id);
CREATE INDEX ix_virtual_machines_name ON virtual_machines (name);
CREATE UNIQUE INDEX one_active_job_per_vm ON jobs (vcenter_name, vm_instance_uuid) WHERE state IN (1, 2, 3, 7);
CREATE INDEX ix_trust_events_of_vm ON trust_events (vcenter_uuid, vm_instance_uuid);
CREATE INDEX ix_spans_arrival ON spans (arrival, trace_id);
COMMIT;
