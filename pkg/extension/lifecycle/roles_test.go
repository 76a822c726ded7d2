// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/test/testbed/controlplane"
	"github.com/registry-cache/extension/test/testbed/gobuild"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

const (
	chartName      = "gardener-extension-registry-cache"
	chartNamespace = "extension-registry-cache"
	controllerUser = "system:serviceaccount:" + chartNamespace + ":" + chartName
)

// seldom are permissions that this story does not need, and what they are for all the same.
var seldom = map[string]string{
	"list extensions.gardener.cloud/extensions": "an API server that does not stream lists",
	"list extensions.gardener.cloud/clusters":   "an API server that does not stream lists",
	"update secrets":              "a Secret of a ManagedResource that somebody has changed",
	"create events":               "leader election",
	"patch events":                "an event that repeats within minutes",
	"create events.k8s.io/events": "leader election, with the newer API",
	"patch events.k8s.io/events":  "an event that repeats within minutes",
	"get admissionregistration.k8s.io/mutatingwebhookconfigurations": "a restart of the controller",
	// The API server wants it for the server-side apply of an object that does not exist, which the audit log calls patch.
	"create configmaps":                            "the monitoring of a Shoot",
	"create monitoring.coreos.com/prometheusrules": "the monitoring of a Shoot",
	"create monitoring.coreos.com/scrapeconfigs":   "the monitoring of a Shoot",
}

// The program itself, with the roles of the chart and nothing else, takes an Extension through its life: all that it asks
// for is granted, and all that is granted is asked for.
func TestChartRolesAreEnoughAndNeeded(t *testing.T) {
	t.Parallel()
	l := ownLandscape(t, controlplane.Options{Seed: true, Audit: true}, shootOptions)
	s := l.newShoot(t, "roles")
	rules := l.installRoles(t)
	controller := l.startController(t)

	const upstream, other = "roles.example.com", "other.roles.example.com"
	s.operate(t, 1, "reconcile", cacheFor(upstream), cacheFor(other))
	s.waitForOperation(t, gardencorev1beta1.LastOperationTypeCreate)
	s.waitForPods(t, upstream)
	s.waitForPods(t, other)
	eventually(t, soon, func() error {
		for upstream, cache := range s.status(t) {
			if len(cache.Conditions) == 0 || cache.Conditions[0].Status != metav1.ConditionTrue {
				return fmt.Errorf("the cache of %s: %v", upstream, cache.Conditions)
			}
		}
		return nil
	})
	before := s.cache(t, upstream)

	// The storage rounds a volume up. gardenlet requests no reconciliation for that.
	s.bindClaim(t, upstream, "5Gi")
	eventually(t, 2*soon, func() error {
		secret := &corev1.Secret{ObjectMeta: kubeSystem(objectName(upstream) + "-config")}
		if s.exists(t, secret) && strings.Contains(string(secret.Data["config.yaml"]), "size: 5Gi\n") {
			return nil
		}
		return fmt.Errorf("the cache may not use 5Gi:\n%s", secret.Data["config.yaml"])
	})
	before.requireSame(t, s.cache(t, upstream))

	// The webhook, through the API server.
	if got := s.nodeFiles(t, "running"); got != 2 {
		t.Errorf("nodes get %d caches, want 2", got)
	}
	// A cache less, and the other one larger.
	s.operate(t, 2, "reconcile", cacheFor(upstream, "2Gi"))
	s.waitForOperation(t, gardencorev1beta1.LastOperationTypeReconcile)

	s.setHibernated(t, true)
	if got := s.nodeFiles(t, "hibernated"); got != 0 {
		t.Errorf("nodes of a hibernated Shoot get %d caches", got)
	}
	s.operate(t, 3, "reconcile", cacheFor(upstream, "2Gi"))
	s.waitForOperation(t, gardencorev1beta1.LastOperationTypeReconcile)
	s.setHibernated(t, false)
	s.operate(t, 4, "reconcile", cacheFor(upstream, "2Gi"))
	s.waitForOperation(t, gardencorev1beta1.LastOperationTypeReconcile)
	if got := s.nodeFiles(t, "awake"); got != 1 {
		t.Errorf("nodes get %d caches after the Shoot has woken up, want 1", got)
	}
	if after := s.cache(t, upstream); after.address != before.address || after.pod != before.pod || after.claim != before.claim {
		t.Errorf("the cache was not left alone:\nbefore %+v\nafter  %+v", before, after)
	}

	s.operate(t, 5, "migrate", cacheFor(upstream, "2Gi"))
	s.waitForOperation(t, gardencorev1beta1.LastOperationTypeMigrate)
	// On the new Seed it is a new one.
	s.deleteExtension(t)
	s.operate(t, 6, "restore", cacheFor(upstream, "2Gi"))
	// Gardener's library takes the order away after it was carried out, and reconciles once more if anything has changed
	// meanwhile.
	s.waitForOperation(t, gardencorev1beta1.LastOperationTypeRestore, gardencorev1beta1.LastOperationTypeReconcile)

	ex := s.extension(t)
	if err := s.seed.Client().Delete(t.Context(), ex); err != nil {
		t.Fatal(err)
	}
	if err := s.seed.WaitUntilDeleted(t.Context(), 2*soon, ex); err != nil {
		t.Fatalf("%v\n%s", err, logOf(t, controller))
	}

	// Once more, by force.
	s.operate(t, 7, "reconcile", cacheFor(upstream))
	s.waitForOperation(t, gardencorev1beta1.LastOperationTypeCreate)
	s.setShoot(t, nil, map[string]any{"deletionTimestamp": metav1.Now(), "annotations": map[string]any{"confirmation.gardener.cloud/force-deletion": "true"}})
	ex = s.extension(t)
	if err := s.seed.Client().Delete(t.Context(), ex); err != nil {
		t.Fatal(err)
	}
	if err := s.seed.WaitUntilDeleted(t.Context(), soon, ex); err != nil {
		t.Fatalf("%v\n%s", err, logOf(t, controller))
	}

	for _, name := range []string{"gardener-extension-heartbeat", "registry-cache-leader-election"} {
		lease := &coordinationv1.Lease{}
		if err := l.seed.Client().Get(t.Context(), client.ObjectKey{Namespace: chartNamespace, Name: name}, lease); err != nil {
			t.Error(err)
		}
	}
	if log := logOf(t, controller); strings.Contains(strings.ToLower(log), "forbidden") {
		t.Errorf("the controller was refused something:\n%s", log)
	}
	events, err := l.seed.AuditLog(controllerUser)
	if err != nil {
		t.Fatal(err)
	}
	if len(events) == 0 {
		t.Fatal("the audit log has nothing of the controller, this test does not test what it should")
	}
	requireGranted(t, events)
	requireNeeded(t, rules, events)
}

func logOf(t *testing.T, process *controlplane.Process) string {
	t.Helper()
	log, err := process.Log()
	if err != nil {
		t.Fatal(err)
	}
	return string(log)
}

func requireGranted(t *testing.T, events []auditv1.Event) {
	t.Helper()
	for _, event := range events {
		if event.ResponseStatus != nil && event.ResponseStatus.Code == http.StatusForbidden {
			t.Errorf("refused: %s %s", event.Verb, event.RequestURI)
		}
	}
}

// requireNeeded takes each rule apart into single permissions.
func requireNeeded(t *testing.T, rules []rbacv1.PolicyRule, events []auditv1.Event) {
	t.Helper()
	for _, rule := range rules {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					for _, name := range append(rule.ResourceNames, "")[:max(1, len(rule.ResourceNames))] {
						used := slices.ContainsFunc(events, func(event auditv1.Event) bool {
							ref := event.ObjectRef
							if ref == nil || event.Verb != verb || ref.APIGroup != group || name != "" && ref.Name != name {
								return false
							}
							return resource == strings.TrimSuffix(ref.Resource+"/"+ref.Subresource, "/")
						})
						permission := verb + " " + strings.TrimPrefix(group+"/"+resource, "/")
						if _, ok := seldom[permission]; !used && !ok {
							t.Errorf("nobody needs: %s %s", permission, name)
						}
					}
				}
			}
		}
	}
}

// installRoles renders the chart and installs its ServiceAccount, roles and bindings. It returns the rules.
func (l *landscape) installRoles(t *testing.T) []rbacv1.PolicyRule {
	t.Helper()
	if err := l.seed.Client().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: chartNamespace}}); err != nil {
		t.Fatal(err)
	}
	root, err := workspace.Root()
	if err != nil {
		t.Fatal(err)
	}
	chart, err := loader.LoadDir(filepath.Join(root, "charts", chartName))
	if err != nil {
		t.Fatal(err)
	}
	values, err := util.ToRenderValues(chart, nil, common.ReleaseOptions{Name: "test", Namespace: chartNamespace, IsInstall: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Engine{Strict: true}.Render(chart, values)
	if err != nil {
		t.Fatal(err)
	}
	var rules []rbacv1.PolicyRule
	installed := 0
	for _, content := range files {
		for document := range strings.SplitSeq(content, "\n---\n") {
			obj, _, err := scheme.Codecs.UniversalDeserializer().Decode([]byte(document), nil, nil)
			if err != nil {
				continue // templates of names, and empty ones
			}
			switch obj := obj.(type) {
			case *rbacv1.ClusterRole:
				rules = append(rules, obj.Rules...)
			case *rbacv1.Role:
				rules = append(rules, obj.Rules...)
			case *rbacv1.ClusterRoleBinding, *rbacv1.RoleBinding, *corev1.ServiceAccount:
			default:
				continue
			}
			installed++
			if err := l.seed.Client().Create(t.Context(), obj.(client.Object)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if installed != 5 {
		t.Fatalf("the chart has %d objects that give permissions, want 5", installed)
	}
	return rules
}

// startController builds the program and starts it as the chart does, but for what depends on being in a pod.
func (l *landscape) startController(t *testing.T) *controlplane.Process {
	t.Helper()
	root, err := workspace.Root()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, chartName)
	if err := gobuild.Build(t.Context(), gobuild.Options{Dir: root, Packages: []string{"./cmd/" + chartName}, Output: program}); err != nil {
		t.Fatal(err)
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: chartNamespace, Name: chartName}}
	token := &authenticationv1.TokenRequest{}
	if err := l.seed.Client().SubResource("token").Create(t.Context(), account, token); err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := l.seed.KubeconfigWithToken(token.Status.Token)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(path, kubeconfig, 0o600); err != nil {
		t.Fatal(err)
	}
	ports, err := controlplane.FreePorts(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	process, err := controlplane.StartProcess(dir, program, nil, "controller", "--kubeconfig="+path,
		"--leader-election-namespace="+chartNamespace, "--heartbeat-namespace="+chartNamespace, "--heartbeat-renew-interval-seconds=5",
		"--webhook-config-mode=url", fmt.Sprintf("--webhook-config-url=localhost:%d", ports[0]), "--webhook-config-namespace="+chartNamespace,
		fmt.Sprintf("--webhook-config-server-port=%d", ports[0]), "--webhook-config-cert-dir="+filepath.Join(dir, "certificates"),
		fmt.Sprintf("--metrics-bind-address=127.0.0.1:%d", ports[1]), fmt.Sprintf("--health-bind-address=127.0.0.1:%d", ports[2]),
		"--gardener-version=v1.147.1", "--log-level=info", "--log-format=json")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(process.Err(), process.Stop()); err != nil {
			t.Error(err)
		}
	})
	if err := process.WaitUntilReady(t.Context(), fmt.Sprintf("http://127.0.0.1:%d/readyz", ports[2])); err != nil {
		t.Fatal(err)
	}
	if metrics := get(t, fmt.Sprintf("http://127.0.0.1:%d/metrics", ports[1])); !strings.Contains(metrics, "controller_runtime_") {
		t.Errorf("no metrics of the controllers in\n%s", metrics)
	}
	get(t, fmt.Sprintf("http://127.0.0.1:%d/healthz", ports[2]))
	return process
}

func get(t *testing.T, url string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("GET %s: %s, %v", url, response.Status, err)
	}
	return string(body)
}

// operate does what gardenlet does to have an Extension worked on. turn makes its configuration differ from that of the
// turn before without another meaning, so that nobody takes the end of an earlier operation for this one's.
func (s *shoot) operate(t *testing.T, turn int, operation string, caches ...map[string]any) {
	t.Helper()
	for _, cache := range caches {
		cache["garbageCollection"] = map[string]any{"ttl": fmt.Sprintf("%dh%dm", 168-turn, 60*turn)}
	}
	ex := s.asked(t, caches...)
	metav1.SetMetaDataAnnotation(&ex.ObjectMeta, "gardener.cloud/operation", operation)
	metav1.SetMetaDataAnnotation(&ex.ObjectMeta, "gardener.cloud/timestamp", time.Now().UTC().Format(time.RFC3339Nano))
	s.write(t, ex)
}

// waitForOperation waits until one of the operations has succeeded.
func (s *shoot) waitForOperation(t *testing.T, operations ...gardencorev1beta1.LastOperationType) {
	t.Helper()
	eventually(t, 2*soon, func() error {
		ex := s.extension(t)
		last := ex.Status.LastOperation
		if last == nil || !slices.Contains(operations, last.Type) || last.State != gardencorev1beta1.LastOperationStateSucceeded ||
			ex.Status.ObservedGeneration != ex.Generation || ex.Annotations["gardener.cloud/operation"] != "" {
			text, err := json.Marshal(ex.Status)
			return errors.Join(fmt.Errorf("waiting for %v: %s, annotations %v", operations, text, ex.Annotations), err)
		}
		return nil
	})
}

// bindClaim gives the claim of an upstream a volume of that capacity: the storage is no part of the landscape.
func (s *shoot) bindClaim(t *testing.T, upstream, capacity string) {
	t.Helper()
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: kubeSystem("cache-volume-" + objectName(upstream) + "-0")}
	if !s.exists(t, claim) {
		t.Fatalf("claim %s does not exist", claim.Name)
	}
	claim.Status.Phase = corev1.ClaimBound
	claim.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(capacity)}
	if err := s.shootCluster().Client().Status().Update(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
}

// nodeFiles writes an OperatingSystemConfig as gardenlet does and returns for how many caches it has a hosts.toml.
func (s *shoot) nodeFiles(t *testing.T, name string) int {
	t.Helper()
	osc := &extensionsv1alpha1.OperatingSystemConfig{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name},
		Spec: extensionsv1alpha1.OperatingSystemConfigSpec{
			DefaultSpec: extensionsv1alpha1.DefaultSpec{Type: "local"},
			Purpose:     extensionsv1alpha1.OperatingSystemConfigPurposeReconcile,
			CRIConfig:   &extensionsv1alpha1.CRIConfig{Name: extensionsv1alpha1.CRINameContainerD},
		},
	}
	s.create(t, osc)
	caches := 0
	for _, file := range osc.Spec.Files {
		if strings.HasSuffix(file.Path, "/hosts.toml") {
			caches++
		}
	}
	return caches
}
