{{- define "cookbook.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Short enough for the longest name that is made of it. */}}
{{- define "cookbook.fullname" -}}
{{- $name := include "cookbook.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* What never changes over upgrades. Argument: (list $ "component"). */}}
{{- define "cookbook.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "cookbook.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "cookbook.labels" -}}
{{- $root := index . 0 -}}
{{ include "cookbook.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Argument: (list $ an image's values). */}}
{{- define "cookbook.image" -}}
{{- $image := index . 1 -}}
image: {{ printf "%s:%s" $image.repository (default (index . 0).Chart.AppVersion $image.tag) | quote }}
imagePullPolicy: {{ $image.pullPolicy }}
{{- end }}

{{/* Of every pod: a user that is nobody, no rights in the cluster, and no variables for each Service
     of the namespace, of which Qdrant would take those that begin with its name for settings. */}}
{{- define "cookbook.pod" -}}
serviceAccountName: {{ include "cookbook.fullname" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "cookbook.container" -}}
securityContext:
  runAsNonRoot: true
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* Over nodes and zones where that is possible. Argument: (list $ "component"), or
     (list $ "component" replicas) where no two pods may share a node. */}}
{{- define "cookbook.spread" -}}
{{- $apart := 0 }}
{{- if gt (len .) 2 }}{{ $apart = int (index . 2) }}{{ end }}
topologySpreadConstraints:
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    {{- if and (gt $apart 1) (eq $key "kubernetes.io/hostname") }}
    # While there are fewer nodes than that, maxSkew is counted from zero: one pod on each.
    minDomains: {{ $apart }}
    whenUnsatisfiable: DoNotSchedule
    {{- else }}
    whenUnsatisfiable: ScheduleAnyway
    {{- end }}
    labelSelector:
      matchLabels:
        {{- include "cookbook.selector" $ | nindent 8 }}
{{- end }}
{{- end }}

{{/* Argument: values with tolerations and nodeSelector. */}}
{{- define "cookbook.nodes" -}}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The only folders that our images write to, beside volumes. */}}
{{- define "cookbook.scratch.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 2Gi}
- name: home
  emptyDir: {sizeLimit: 256Mi}
{{- end }}

{{- define "cookbook.scratch.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: home, mountPath: /home/cookbook}
{{- end }}

{{- define "cookbook.files.volumes" -}}
{{- if not .Values.files.url }}
- name: files
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-files" (include "cookbook.fullname" .)) .Values.files.persistence.existingClaim }}
{{- end }}
{{- end }}

{{- define "cookbook.files.mounts" -}}
{{- if not .Values.files.url }}
- {name: files, mountPath: /files}
{{- end }}
{{- end }}

{{- define "cookbook.tokenSecret" -}}
{{- default (printf "%s-token" (include "cookbook.fullname" .)) .Values.auth.existingSecret -}}
{{- end }}

{{- define "cookbook.token" -}}
- name: COOKBOOK_SERVICE_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ include "cookbook.tokenSecret" . }}, key: {{ .Values.auth.tokenKey }}}
{{- end }}

{{- define "cookbook.postgresSecret" -}}
{{- default (printf "%s-postgres" (include "cookbook.fullname" .)) .Values.postgres.existingSecret -}}
{{- end }}

{{/* What is no secret, as the Compose file has it. */}}
{{- define "cookbook.settings" -}}
- configMapRef: {name: {{ include "cookbook.fullname" . }}-settings}
{{- with .Values.files.existingSecret }}
- secretRef: {name: {{ . }}}
{{- end }}
{{- end }}

{{/* The keys, each from a Secret. */}}
{{- define "cookbook.keys" -}}
{{- $hosted := eq .Values.endpoints.mode "hosted" -}}
{{- $key := ternary "NVIDIA_API_KEY" "NIM_API_KEY" $hosted -}}
{{- if .Values.localNims.enabled }}
- name: NIM_API_KEY
  valueFrom:
    secretKeyRef: {name: {{ include "cookbook.fullname" . }}-local-nims, key: COOKBOOK_LOCAL_KEY}
{{- else if .Values.endpoints.existingSecret }}
- name: {{ $key }}
  valueFrom:
    secretKeyRef: {name: {{ .Values.endpoints.existingSecret }}, key: {{ default $key .Values.endpoints.secretKey }}}
{{- end }}
{{- with .Values.store.existingSecret }}
- name: COOKBOOK_STORE_URL
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: COOKBOOK_STORE_URL}
{{- end }}
{{- if eq .Values.store.kind "postgres" }}
# PostgreSQL's client takes it for a URL without a password.
- name: PGPASSWORD
  valueFrom:
    secretKeyRef: {name: {{ include "cookbook.postgresSecret" . }}, key: POSTGRES_PASSWORD}
{{- end }}
{{- with .Values.queue.existingSecret }}
- name: COOKBOOK_NATS_URL
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: COOKBOOK_NATS_URL}
{{- end }}
{{- with .Values.qdrant.existingSecret }}
- name: QDRANT_API_KEY
  valueFrom:
    secretKeyRef: {name: {{ . }}, key: QDRANT_API_KEY}
{{- end }}
{{- end }}

{{/* The address of a NIM. Argument: (list $ "chat"|"embedding"|"reranking"). */}}
{{- define "cookbook.nimUrl" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $name := include "cookbook.fullname" $root -}}
{{- if $root.Values.localNims.enabled -}}
{{- $port := get (dict "chat" "8000" "embedding" "8001" "reranking" "8002") $role -}}
{{- printf "http://%s-local-nims:%s/v1" $name $port -}}
{{- else if $root.Values.nims.enabled -}}
{{- printf "http://%s-nim-%s:8000/v1" $name $role -}}
{{- else -}}
{{- get $root.Values.endpoints.urls $role -}}
{{- end -}}
{{- end }}

{{/* rag_service.queue names the stream so. */}}
{{- define "cookbook.jobs" -}}
{{- printf "%s_JOBS" (upper .Values.index) -}}
{{- end }}

{{/* A collection that is made before all nodes of Qdrant have found each other would lie on the
     first of them for ever: whoever may make it waits for them. */}}
{{- define "cookbook.waitForQdrant" -}}
{{- if and (eq .Values.store.kind "qdrant") (gt (int .Values.qdrant.replicas) 1) }}
initContainers:
  - name: wait-for-qdrant
    {{- include "cookbook.image" (list . .Values.images.service) | nindent 4 }}
    command: [python, /scripts/qdrant.py, wait]
    args: [{{ .Values.qdrant.replicas | toString | quote }}, "http://{{ include "cookbook.fullname" . }}-qdrant:6333"]
    {{- with .Values.qdrant.existingSecret }}
    env:
      - name: QDRANT_API_KEY
        valueFrom:
          secretKeyRef: {name: {{ . }}, key: QDRANT_API_KEY}
    {{- end }}
    {{- include "cookbook.container" . | nindent 4 }}
    resources: {requests: {cpu: 20m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}
    volumeMounts:
      - {name: scripts, mountPath: /scripts, readOnly: true}
{{- end }}
{{- end }}

{{- define "cookbook.waitForQdrant.volumes" -}}
{{- if and (eq .Values.store.kind "qdrant") (gt (int .Values.qdrant.replicas) 1) }}
- name: scripts
  configMap: {name: {{ include "cookbook.fullname" . }}-scripts}
{{- end }}
{{- end }}

{{- define "cookbook.settings.data" -}}
{{- $name := include "cookbook.fullname" . -}}
COOKBOOK_ENDPOINTS: {{ .Values.endpoints.mode }}
{{- if eq .Values.endpoints.mode "self-hosted" }}
{{- range $role := list "chat" "embedding" "reranking" }}
NIM_{{ upper $role }}_URL: {{ include "cookbook.nimUrl" (list $ $role) }}
{{- end }}
{{- end }}
{{- if eq .Values.store.kind "qdrant" }}
COOKBOOK_STORE_URL: http://{{ $name }}-qdrant:6333
{{- else if eq .Values.store.kind "postgres" }}
COOKBOOK_STORE_URL: postgresql://cookbook@{{ $name }}-postgres:5432/cookbook
{{- else if .Values.store.url }}
COOKBOOK_STORE_URL: {{ .Values.store.url }}
{{- end }}
{{- if .Values.nats.enabled }}
COOKBOOK_NATS_URL: nats://{{ $name }}-nats:4222
{{- else if .Values.queue.url }}
COOKBOOK_NATS_URL: {{ .Values.queue.url }}
{{- end }}
COOKBOOK_FILES: {{ default "/files" .Values.files.url }}
COOKBOOK_INDEX: {{ .Values.index }}
OTEL_EXPORTER_OTLP_ENDPOINT: {{ .Values.otlpEndpoint | quote }}
{{- end }}

{{/* Changes of the settings start new pods, a new version of the chart alone does not. */}}
{{- define "cookbook.checksum" -}}
checksum/settings: {{ include "cookbook.settings.data" . | sha256sum }}
{{- end }}

{{/* A secret text that is made once. Argument: (list $ "name" "key"). In a rendering without a
     cluster it is another each time. */}}
{{- define "cookbook.kept" -}}
{{- $there := lookup "v1" "Secret" (index . 0).Release.Namespace (index . 1) -}}
{{- $held := "" -}}
{{- if $there -}}
{{- $held = get (default dict $there.data) (index . 2) -}}
{{- end -}}
{{- default (randAlphaNum 64 | b64enc) $held -}}
{{- end }}

{{- define "cookbook.volumeClaim" -}}
accessModes: [ReadWriteOnce]
{{- with .storageClass }}
storageClassName: {{ . }}
{{- end }}
resources: {requests: {storage: {{ .size }}}}
{{- end }}
