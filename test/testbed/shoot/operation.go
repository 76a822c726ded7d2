package shoot

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	gardencorev1beta1 "github.com/gardener/gardener/pkg/apis/core/v1beta1"
	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/gardener/gardener/pkg/client/kubernetes"
	"github.com/gardener/gardener/pkg/extensions"
	gardenerutils "github.com/gardener/gardener/pkg/utils/gardener"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/registry-cache/extension/pkg/apis/registry/v1alpha3"
	"github.com/registry-cache/extension/test/testbed/kindcluster"
	"github.com/registry-cache/extension/test/testbed/workspace"
)

// Result is what a Shoot has become.
type Result struct {
	// Namespace is the Shoot's namespace in the seed, "shoot--<project>--<name>".
	Namespace string
	// Status is what the extension registry-cache reports, nil if the Shoot does not have it.
	Status *v1alpha3.RegistryStatus
}

// Apply makes the cluster what the manifest says and waits until the extensions are ready and every node has applied
// its configuration. A second call with the same manifest reconciles again. The error of a refused configuration is
// what the extension reports, with the field's path; nothing on the nodes has changed then.
//
// A testbed cluster holds one Shoot. Extensions that a manifest no longer lists are deleted.
func Apply(ctx context.Context, cluster *kindcluster.Cluster, progress *workspace.Progress, manifest []byte) (*Result, error) {
	shoot, err := Parse(manifest)
	if err != nil {
		return nil, err
	}
	o, err := newOperation(ctx, cluster, progress, shoot)
	if err != nil {
		return nil, err
	}
	return o.reconcile(ctx)
}

// Delete deletes the Shoot that the manifest names: its extensions, what they made the nodes apply, and its namespace.
// A Shoot that does not exist is no error.
func Delete(ctx context.Context, cluster *kindcluster.Cluster, progress *workspace.Progress, manifest []byte) error {
	shoot, err := Parse(manifest)
	if err != nil {
		return err
	}
	o, err := newOperation(ctx, cluster, progress, shoot)
	if err != nil {
		return err
	}
	return o.delete(ctx)
}

// operation is one run of the gardenlet's flow for a Shoot.
type operation struct {
	client   client.Client
	progress *workspace.Progress
	// shoot is complete; its status is the one in the Cluster.
	shoot *gardencorev1beta1.Shoot
	// namespace is the Shoot's technical ID.
	namespace string
	facts     facts
	// kubeconfig reaches the Shoot from a pod in the seed.
	kubeconfig []byte
	// containerd are the settings that the nodes were made with.
	containerd containerdSettings
	// journal returns the end of the node agent's log on a node, for error messages.
	journal func(ctx context.Context, node string) string
	// interval is how often a state is looked at.
	interval time.Duration
}

func newOperation(ctx context.Context, cluster *kindcluster.Cluster, progress *workspace.Progress, shoot *gardencorev1beta1.Shoot) (*operation, error) {
	restConfig, err := cluster.RESTConfig()
	if err != nil {
		return nil, err
	}
	c, err := client.New(restConfig, client.Options{Scheme: kubernetes.SeedScheme})
	if err != nil {
		return nil, fmt.Errorf("connecting to cluster %s: %w", cluster.Name(), err)
	}
	discovered, err := discovery.NewDiscoveryClientForConfig(restConfig)
	if err != nil {
		return nil, fmt.Errorf("connecting to cluster %s: %w", cluster.Name(), err)
	}
	version, err := discovered.ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("asking cluster %s for its version: %w", cluster.Name(), err)
	}
	kubeconfig, err := inClusterKubeconfig(restConfig)
	if err != nil {
		return nil, err
	}
	nodes, err := cluster.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	if len(nodes) == 0 {
		return nil, fmt.Errorf("cluster %s has no nodes", cluster.Name())
	}
	settings, err := readContainerdSettings(ctx, nodes[0])
	if err != nil {
		return nil, fmt.Errorf("reading the settings of containerd on node %s: %w", nodes[0].Name, err)
	}
	project, _ := projectOf(shoot.Namespace)
	return &operation{
		client:     c,
		progress:   progress,
		shoot:      shoot,
		namespace:  gardenerutils.ComputeTechnicalID(project, shoot),
		facts:      facts{kubernetesVersion: strings.TrimPrefix(version.GitVersion, "v"), nodes: int32(len(nodes))},
		kubeconfig: kubeconfig,
		containerd: settings,
		interval:   500 * time.Millisecond,
		journal: func(ctx context.Context, name string) string {
			for _, node := range nodes {
				if node.Name == name {
					return readJournal(ctx, node)
				}
			}
			return ""
		},
	}, nil
}

// reconcile is the gardenlet's reconcile flow.
func (o *operation) reconcile(ctx context.Context) (*Result, error) {
	if err := complete(o.shoot, o.facts); err != nil {
		return nil, fmt.Errorf("checking the Shoot manifest: %w", err)
	}
	previous, err := o.stored(ctx)
	if err != nil {
		return nil, err
	}
	if previous != nil && previous.DeletionTimestamp != nil {
		return nil, fmt.Errorf("shoot %s is being deleted: delete it to the end first", client.ObjectKeyFromObject(o.shoot))
	}
	if err := o.refuseSecondShoot(ctx); err != nil {
		return nil, err
	}

	operationType := gardencorev1beta1.LastOperationTypeCreate
	if previous != nil {
		o.shoot.Status = previous.Status
		if last := previous.Status.LastOperation; last != nil && (last.Type != gardencorev1beta1.LastOperationTypeCreate || last.State == gardencorev1beta1.LastOperationStateSucceeded) {
			operationType = gardencorev1beta1.LastOperationTypeReconcile
		}
	}
	result := &Result{Namespace: o.namespace}
	if err := o.run(ctx, operationType, []task{
		{"Deploying Shoot namespace in Seed", o.deployNamespace},
		{"Deploying referenced resources", o.deployReferencedResources},
		{"Deploying the kubeconfig of the Shoot", o.deployKubeconfig},
		{"Deploying extension resources", o.deployExtensions},
		{"Waiting until extension resources are ready", func(ctx context.Context) (err error) {
			result.Status, err = o.waitForExtensions(ctx)
			return err
		}},
		{"Deleting stale extension resources", func(ctx context.Context) error { return o.deleteExtensions(ctx, o.wantedExtensions()) }},
		{"Deploying operating system specific configuration for shoot workers", o.deployOperatingSystemConfig},
		{"Deploying managed resources for the gardener-node-agent", o.deployNodeAgentSecret},
		{"Waiting until all shoot worker nodes have updated the operating system config", o.waitForNodes},
	}); err != nil {
		return nil, err
	}
	return result, nil
}

// delete is the gardenlet's delete flow, with one difference: there the nodes go before the extensions. Here they
// stay, so what an extension made them apply is taken back after it is gone, as when an owner removes it from a Shoot.
func (o *operation) delete(ctx context.Context) error {
	stored, err := o.stored(ctx)
	if err != nil {
		return err
	}
	if stored == nil {
		o.progress.Printf("Shoot %s: there is nothing to delete", client.ObjectKeyFromObject(o.shoot))
		return nil
	}
	o.shoot = stored
	if o.shoot.DeletionTimestamp == nil {
		o.shoot.DeletionTimestamp = new(metav1.Now())
	}
	return o.run(ctx, gardencorev1beta1.LastOperationTypeDelete, []task{
		{"Deleting extension resources", func(ctx context.Context) error { return o.deleteExtensions(ctx, nil) }},
		{"Taking the configuration back from shoot worker nodes", o.resetNodes},
		{"Deleting managed resources", o.deleteNodeAgentSecret},
		{"Deleting shoot namespace in Seed", o.deleteNamespace},
		{"Deleting the Cluster resource", o.deleteCluster},
	})
}

// task is a step of a flow.
type task struct {
	name string
	do   func(context.Context) error
}

// run runs the tasks in order until one fails, and keeps the Shoot's last operation in the Cluster up to date.
func (o *operation) run(ctx context.Context, operationType gardencorev1beta1.LastOperationType, tasks []task) error {
	name := client.ObjectKeyFromObject(o.shoot)
	status := &o.shoot.Status
	status.TechnicalID = o.namespace
	status.SeedName = o.shoot.Spec.SeedName
	if status.UID == "" {
		status.UID = uuid.NewUUID()
	}
	report := func(ctx context.Context, state gardencorev1beta1.LastOperationState, progress int32, description string) error {
		status.LastOperation = &gardencorev1beta1.LastOperation{Type: operationType, State: state, Progress: progress, Description: description, LastUpdateTime: metav1.Now()}
		return o.syncCluster(ctx)
	}

	if err := report(ctx, gardencorev1beta1.LastOperationStateProcessing, 0, tasks[0].name); err != nil {
		return err
	}
	for i, task := range tasks {
		err := o.progress.Step(task.name, func() error { return task.do(ctx) })
		if err == nil {
			continue
		}
		progress := int32(100 * i / len(tasks))
		status.LastErrors = []gardencorev1beta1.LastError{{Description: err.Error(), TaskID: new(task.name), LastUpdateTime: new(metav1.Now())}}
		o.progress.Printf("Shoot %s: %s Error (%d%%)", name, operationType, progress)
		// What has failed is to be seen in the Cluster even if it was the patience of the caller.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportTimeout)
		defer cancel()
		return errors.Join(fmt.Errorf("shoot %s: %w", name, err), report(ctx, gardencorev1beta1.LastOperationStateError, progress, err.Error()))
	}
	status.LastErrors = nil
	o.progress.Printf("Shoot %s: %s Succeeded (100%%)", name, operationType)
	if operationType == gardencorev1beta1.LastOperationTypeDelete {
		return nil
	}
	return report(ctx, gardencorev1beta1.LastOperationStateSucceeded, 100, "Shoot cluster has been successfully reconciled.")
}

// stored returns the Shoot in the Cluster, nil if there is none.
func (o *operation) stored(ctx context.Context) (*gardencorev1beta1.Shoot, error) {
	cluster, err := extensions.GetCluster(ctx, o.client, o.namespace)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading Cluster %s: %w", o.namespace, err)
	}
	return cluster.Shoot, nil
}

// refuseSecondShoot protects a Shoot from another one that would take its nodes.
func (o *operation) refuseSecondShoot(ctx context.Context) error {
	clusters := &extensionsv1alpha1.ClusterList{}
	if err := o.client.List(ctx, clusters); err != nil {
		return fmt.Errorf("listing Clusters: %w", err)
	}
	for _, cluster := range clusters.Items {
		if cluster.Name != o.namespace {
			return fmt.Errorf("the nodes belong to the Shoot in namespace %s: delete that one first", cluster.Name)
		}
	}
	return nil
}

func (o *operation) syncCluster(ctx context.Context) error {
	meta := metav1.ObjectMeta{Name: local}
	profile := &gardencorev1beta1.CloudProfile{ObjectMeta: meta, Spec: gardencorev1beta1.CloudProfileSpec{Type: local}}
	seed := &gardencorev1beta1.Seed{ObjectMeta: meta, Spec: gardencorev1beta1.SeedSpec{Provider: gardencorev1beta1.SeedProvider{Type: local, Region: local}}}
	if err := extensions.SyncClusterResourceToSeed(ctx, o.client, o.namespace, o.shoot, profile, seed); err != nil {
		return fmt.Errorf("writing Cluster %s: %w", o.namespace, err)
	}
	return nil
}

func (o *operation) deleteCluster(ctx context.Context) error {
	return client.IgnoreNotFound(o.client.Delete(ctx, &extensionsv1alpha1.Cluster{ObjectMeta: metav1.ObjectMeta{Name: o.namespace}}))
}
