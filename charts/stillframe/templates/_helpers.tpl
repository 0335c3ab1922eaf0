{{- define "stillframe.name" -}}
{{- if contains "stillframe" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-stillframe" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "stillframe.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Of everything; (dict "root" $ "component" "engine") */}}
{{- define "stillframe.labels" -}}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: stillframe
{{ include "stillframe.selector" . }}
{{- end }}

{{/* Of pods, and of what selects them: never changed by an upgrade. */}}
{{- define "stillframe.selector" -}}
app.kubernetes.io/name: stillframe
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* The secret with a repository's credentials, empty if there is none; (dict "root" $ "name" NAME "repository" TABLE) */}}
{{- define "stillframe.credentials" -}}
{{- if .repository.existingSecret }}{{ .repository.existingSecret }}{{ else if .repository.accessKeyId }}{{ include "stillframe.name" .root }}-{{ .name }}-credentials{{ end }}
{{- end }}

{{/* repositories.toml with what it names, for those that speak to the store. */}}
{{- define "stillframe.repositoriesVolume" -}}
projected:
  defaultMode: 0440
  sources:
    - configMap:
        name: {{ include "stillframe.name" . }}-repositories
    {{- range $name, $repository := .Values.repositories }}
    {{- with include "stillframe.credentials" (dict "root" $ "name" $name "repository" $repository) }}
    - secret:
        name: {{ . }}
        # Without it the pod runs, and snapshots to this repository say what is missing.
        optional: true
        items:
          - key: credentials
            path: credentials/{{ $name }}
    {{- end }}
    {{- end }}
{{- end }}

{{/* What a class says of a snapshot. (dict "root" $ "class" CLASS "kind" KIND) */}}
{{- define "stillframe.snapshotParameters" -}}
{{- if .class.repository }}
{{- if not (hasKey .root.Values.repositories .class.repository) }}
{{- fail (printf "%s %q names the repository %q, which is not in the values (repositories: %s)" .kind .class.name .class.repository (keys .root.Values.repositories | sortAlpha | join ", " | default "none")) }}
{{- end }}
repository: {{ .class.repository | quote }}
{{- end }}
{{- if .class.freeze }}
freeze: "true"
{{- end }}
onBufferFull: {{ .class.onBufferFull | default "throttle" | quote }}
{{- end }}

{{/* What no schema can say. */}}
{{- define "stillframe.check" -}}
{{- if ne (empty .Values.tls.controllerSecret) (empty .Values.tls.nodeSecret) }}
{{- fail "tls.controllerSecret and tls.nodeSecret belong together: give both, or none" }}
{{- end }}
{{- $defaults := list }}
{{- range $name, $repository := .Values.repositories }}
{{- if $repository.default }}{{ $defaults = append $defaults $name }}{{ end }}
{{- if and $repository.existingSecret $repository.accessKeyId }}
{{- fail (printf "repository %q has both existingSecret and accessKeyId: leave one away" $name) }}
{{- end }}
{{- end }}
{{- if gt (len $defaults) 1 }}
{{- fail (printf "more than one repository is the default: %s" (join ", " $defaults)) }}
{{- end }}
{{- range $kind := list "storageClasses" "volumeSnapshotClasses" "volumeGroupSnapshotClasses" }}
{{- $names := list }}{{ $cluster := list }}
{{- range index $.Values $kind }}
{{- if has .name $names }}{{ fail (printf "%s has %q twice" $kind .name) }}{{ end }}
{{- $names = append $names .name }}
{{- if .default }}{{ $cluster = append $cluster .name }}{{ end }}
{{- end }}
{{- if gt (len $cluster) 1 }}{{ fail (printf "%s has more than one default: %s" $kind (join ", " $cluster)) }}{{ end }}
{{- end }}
{{- end }}

{{/* Where pods go; the values of a component. */}}
{{- define "stillframe.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "stillframe.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The security context of a container that needs nothing. */}}
{{- define "stillframe.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
