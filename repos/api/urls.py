from rest_framework.routers import SimpleRouter

from repos.api import views

router = SimpleRouter()
router.register("gitrepos", views.GitRepoViewSet)
router.register("clusters", views.ClusterViewSet)
router.register("clustergroups", views.ClusterGroupViewSet)
router.register("credentials", views.CredentialViewSet)

urlpatterns = router.urls
